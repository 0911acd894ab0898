// What a linear layer does to a product before it is left, whichever kernel has made it: a functor for each,
// called with eight neighbours of a row, which are `Tile`'s to leave (gemm.cuh).
#pragma once
#include "gemm.cuh"

// --- GELU --------------------------------------------------------------------------------------------------

// Of the normal distribution: the share below h, and the density at h.
struct Normal {
  float below, density;
};

// As erf in src/machine/real.rs: the smaller tail is p(t) exp(-h^2 / 2) / 2, t = 1 / (1 + 0.39 |h| / sqrt 2),
// the form of Hastings (1955). One exponential serves both.
__device__ __forceinline__ Normal normal(float h) {
  const float e = __expf(-0.5f * h * h);
  const float t = __fdividef(1.0f, fmaf(0.39f * 0.707106781f, fabsf(h), 1.0f));
  float p = -0.22753728f;
  p = fmaf(p, t, 0.886665f);
  p = fmaf(p, t, -0.6354013f);
  p = fmaf(p, t, 0.6495602f);
  p = fmaf(p, t, 0.091388085f);
  p = fmaf(p, t, 0.23532527f);
  const float tail = 0.5f * p * t * e;
  return {h < 0.0f ? tail : 1.0f - tail, 0.39894228f * e};
}

__device__ __forceinline__ float gelu(float h) {
  return h * normal(h).below;
}

__device__ __forceinline__ float gelu_slope(float h) {
  const Normal at = normal(h);
  return at.below + h * at.density;
}

// --- What is left ------------------------------------------------------------------------------------------

// y = values.
template <class Tile, class Out>
struct Plain {
  Out* y;  // [m, n]
  int n;

  __device__ __forceinline__ void operator()(int row, int col, const float (&values)[8]) const {
    gemm::store_eight<Tile>(y + static_cast<size_t>(row) * n + col, n - col, values);
  }
};

// h = values, y = gelu(h): of h as it is left, in bf16, which is what its gradient will read.
template <class Tile>
struct WithGelu {
  bf16 *h, *y;  // [m, n]
  int n;

  __device__ __forceinline__ void operator()(int row, int col, float (&values)[8]) const {
    const size_t at = static_cast<size_t>(row) * n + col;
    gemm::store_eight<Tile>(h + at, n - col, values);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = gelu(__bfloat162float(__float2bfloat16_rn(values[i])));
    gemm::store_eight<Tile>(y + at, n - col, values);
  }
};

// y = skip + scale values.
template <class Tile>
struct WithResidual {
  const bf16* skip;    // [m, n]
  const float* scale;  // [m / rows_per_sample], or null for 1
  bf16* y;             // [m, n]
  int n, rows_per_sample;

  __device__ __forceinline__ void operator()(int row, int col, float (&values)[8]) const {
    const size_t at = static_cast<size_t>(row) * n + col;
    const float factor = scale ? scale[row / rows_per_sample] : 1.0f;
    float kept[8];
    gemm::load_eight<Tile>(skip + at, n - col, kept);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = kept[i] + factor * values[i];
    gemm::store_eight<Tile>(y + at, n - col, values);
  }
};

// dh = values gelu'(h).
template <class Tile>
struct TimesGeluSlope {
  const bf16* h;  // [m, n]
  bf16* dh;       // [m, n]
  int n;

  __device__ __forceinline__ void operator()(int row, int col, float (&values)[8]) const {
    const size_t at = static_cast<size_t>(row) * n + col;
    float before[8];
    gemm::load_eight<Tile>(h + at, n - col, before);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] *= gelu_slope(before[i]);
    gemm::store_eight<Tile>(dh + at, n - col, values);
  }
};
