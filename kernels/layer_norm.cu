// y = (x - mean) rstd gamma + beta for each row of x, rstd = 1 / sqrt(var + 1e-6), var biased, in two passes.
//
// A warp takes a row, or two short ones, and holds it in registers: lane l has vectors l, l + 32, ... of 8
// elements. The kernels differ in how many vectors that is, and so in the longest row they take (their suffix).
// Bound by memory: 2 bytes read and 2 written an element; gamma and beta come from L1. Of the instructions that a
// multiprocessor of an H200 has time for meanwhile, rows of 768 take 44 % and rows of 384 58 %. Rows are a multiple
// of 8 long.
//
// The gradient, with g = dy gamma and xhat = (x - mean) rstd:
//   dx = rstd (g - mean(g) - xhat mean(g xhat)) + skip,  dgamma = sum over rows of dy xhat,  dbeta = of dy
// One block a multiprocessor, with as many warps as registers allow: each warp walks over rows and sums
// dgamma and dbeta in registers; each block leaves the sums of its warps, layer_norm_grad_sum adds those.
// Bound by memory: 6 bytes read (4 without skip) and 2 written an element.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr float EPS = 1e-6f;
constexpr int WARPS = 4;  // of a block of the forward kernels

// First column of vector k of this lane.
__device__ __forceinline__ int column(int k) {
  return k * WARP_COLS + 8 * lane_id();
}

// Several short rows at once, so that enough loads are under way.
template <int VECTORS, int ROWS>
__device__ __forceinline__ void normalise(
    const bf16* __restrict__ x,       // [rows, cols]
    const float* __restrict__ gamma,  // [cols]
    const float* __restrict__ beta,   // [cols]
    bf16* __restrict__ y,             // [rows, cols]
    float* __restrict__ mean,         // [rows]
    float* __restrict__ rstd,         // [rows]
    int rows, int cols) {
  const int first = (blockIdx.x * WARPS + warp_id()) * ROWS;
  if (first >= rows) return;

  float v[ROWS][VECTORS][8];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const size_t row = min(first + r, rows - 1);  // past the end: the last row again
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
      unpack(column(k) < cols ? load(x + row * cols + column(k)) : zeros(), v[r][k]);
    }
  }

  const float share = 1.0f / cols;
  float scale[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float total = 0;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) total += sum(v[r][k]);
    const float mu = warp_sum(total) * share;

    float squares = 0;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
      const float offset = column(k) < cols ? mu : 0;  // outside all are 0, and stay so
#pragma unroll
      for (int i = 0; i < 8; i++) {
        v[r][k][i] -= offset;
        squares += v[r][k][i] * v[r][k][i];
      }
    }
    scale[r] = rsqrtf(warp_sum(squares) * share + EPS);
    if (lane_id() == 0 && first + r < rows) {
      mean[first + r] = mu;
      rstd[first + r] = scale[r];
    }
  }

#pragma unroll
  for (int k = 0; k < VECTORS; k++) {
    float g[8], b[8];
    load(gamma + min(column(k), cols - 8), g);
    load(beta + min(column(k), cols - 8), b);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float out[8];
#pragma unroll
      for (int i = 0; i < 8; i++) out[i] = v[r][k][i] * scale[r] * g[i] + b[i];
      const size_t row = first + r;
      if (row < rows && column(k) < cols) store(y + row * cols + column(k), out);
    }
  }
}

template <int VECTORS, int GRAD_WARPS>
__device__ __forceinline__ void normalise_grad(
    const bf16* __restrict__ dy,      // [rows, cols]
    const bf16* __restrict__ x,       // [rows, cols]
    const float* __restrict__ gamma,  // [cols]
    const float* __restrict__ mean,   // [rows]
    const float* __restrict__ rstd,   // [rows]
    const bf16* __restrict__ skip,    // [rows, cols] or null
    bf16* __restrict__ dx,            // [rows, cols]
    float* __restrict__ parts,        // [blocks, 2, cols], dgamma and dbeta
    int rows, int cols) {
  const float share = 1.0f / cols;
  float dgamma[VECTORS][8] = {}, dbeta[VECTORS][8] = {};

  for (int row = blockIdx.x * GRAD_WARPS + warp_id(); row < rows; row += gridDim.x * GRAD_WARPS) {
    const size_t at = static_cast<size_t>(row) * cols;
    uint4 dys[VECTORS], xs[VECTORS], skips[VECTORS];
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
      const bool inside = column(k) < cols;
      dys[k] = inside ? load_once(dy + at + column(k)) : zeros();
      xs[k] = inside ? load_once(x + at + column(k)) : zeros();
      skips[k] = inside && skip != nullptr ? load_once(skip + at + column(k)) : zeros();
    }
    const float mu = mean[row], scale = rstd[row];

    float sum_g = 0, sum_gx = 0;
#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
      if (column(k) >= cols) continue;
      float d[8], xhat[8], w[8];
      unpack(dys[k], d);
      unpack(xs[k], xhat);
      load(gamma + column(k), w);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        xhat[i] = (xhat[i] - mu) * scale;
        dgamma[k][i] += d[i] * xhat[i];
        dbeta[k][i] += d[i];
        sum_g += d[i] * w[i];
        sum_gx += d[i] * w[i] * xhat[i];
      }
    }
    const float mean_g = warp_sum(sum_g) * share, mean_gx = warp_sum(sum_gx) * share;

#pragma unroll
    for (int k = 0; k < VECTORS; k++) {
      if (column(k) >= cols) continue;
      float d[8], xhat[8], w[8], s[8];
      unpack(dys[k], d);
      unpack(xs[k], xhat);
      unpack(skips[k], s);
      load(gamma + column(k), w);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        xhat[i] = (xhat[i] - mu) * scale;
        d[i] = scale * (d[i] * w[i] - mean_g - xhat[i] * mean_gx) + s[i];
      }
      store(dx + at + column(k), d);
    }
  }

  float* part = parts + static_cast<size_t>(blockIdx.x) * 2 * cols;
#pragma unroll
  for (int k = 0; k < VECTORS; k++) {
    const float sum_dgamma = sum_over_warps<GRAD_WARPS>(dgamma[k]);
    const float sum_dbeta = sum_over_warps<GRAD_WARPS>(dbeta[k]);
    const int col = k * WARP_COLS + threadIdx.x;
    if (threadIdx.x < WARP_COLS && col < cols) {
      part[col] = sum_dgamma;
      part[cols + col] = sum_dbeta;
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS) layer_norm_256(
    const bf16* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
    bf16* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int rows, int cols) {
  normalise<1, 2>(x, gamma, beta, y, mean, rstd, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) layer_norm_512(
    const bf16* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
    bf16* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int rows, int cols) {
  normalise<2, 2>(x, gamma, beta, y, mean, rstd, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) layer_norm_768(
    const bf16* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
    bf16* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int rows, int cols) {
  normalise<3, 1>(x, gamma, beta, y, mean, rstd, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) layer_norm_1024(
    const bf16* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
    bf16* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int rows, int cols) {
  normalise<4, 1>(x, gamma, beta, y, mean, rstd, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) layer_norm_2048(
    const bf16* __restrict__ x, const float* __restrict__ gamma, const float* __restrict__ beta,
    bf16* __restrict__ y, float* __restrict__ mean, float* __restrict__ rstd, int rows, int cols) {
  normalise<8, 1>(x, gamma, beta, y, mean, rstd, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * 24, 1) layer_norm_grad_256(
    const bf16* __restrict__ dy, const bf16* __restrict__ x, const float* __restrict__ gamma,
    const float* __restrict__ mean, const float* __restrict__ rstd, const bf16* __restrict__ skip,
    bf16* __restrict__ dx, float* __restrict__ parts, int rows, int cols) {
  normalise_grad<1, 24>(dy, x, gamma, mean, rstd, skip, dx, parts, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * 24, 1) layer_norm_grad_512(
    const bf16* __restrict__ dy, const bf16* __restrict__ x, const float* __restrict__ gamma,
    const float* __restrict__ mean, const float* __restrict__ rstd, const bf16* __restrict__ skip,
    bf16* __restrict__ dx, float* __restrict__ parts, int rows, int cols) {
  normalise_grad<2, 24>(dy, x, gamma, mean, rstd, skip, dx, parts, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * 16, 1) layer_norm_grad_768(
    const bf16* __restrict__ dy, const bf16* __restrict__ x, const float* __restrict__ gamma,
    const float* __restrict__ mean, const float* __restrict__ rstd, const bf16* __restrict__ skip,
    bf16* __restrict__ dx, float* __restrict__ parts, int rows, int cols) {
  normalise_grad<3, 16>(dy, x, gamma, mean, rstd, skip, dx, parts, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * 12, 1) layer_norm_grad_1024(
    const bf16* __restrict__ dy, const bf16* __restrict__ x, const float* __restrict__ gamma,
    const float* __restrict__ mean, const float* __restrict__ rstd, const bf16* __restrict__ skip,
    bf16* __restrict__ dx, float* __restrict__ parts, int rows, int cols) {
  normalise_grad<4, 12>(dy, x, gamma, mean, rstd, skip, dx, parts, rows, cols);
}

extern "C" __global__ void __launch_bounds__(32 * 8, 1) layer_norm_grad_2048(
    const bf16* __restrict__ dy, const bf16* __restrict__ x, const float* __restrict__ gamma,
    const float* __restrict__ mean, const float* __restrict__ rstd, const bf16* __restrict__ skip,
    bf16* __restrict__ dx, float* __restrict__ parts, int rows, int cols) {
  normalise_grad<8, 8>(dy, x, gamma, mean, rstd, skip, dx, parts, rows, cols);
}

extern "C" __global__ void __launch_bounds__(1024) layer_norm_grad_sum(
    const float* __restrict__ parts,  // [count, 2, cols]
    float* __restrict__ dgamma,       // [cols]
    float* __restrict__ dbeta,        // [cols]
    int count, int cols) {
  const float sum = sum_parts(parts, count, 2 * cols);
  const int col = 32 * blockIdx.x + lane_id();
  if (warp_id() == 0 && col < 2 * cols) (col < cols ? dgamma + col : dbeta + col - cols)[0] = sum;
}

EMU_KERNEL(layer_norm_256)
EMU_KERNEL(layer_norm_512)
EMU_KERNEL(layer_norm_768)
EMU_KERNEL(layer_norm_1024)
EMU_KERNEL(layer_norm_2048)
EMU_KERNEL(layer_norm_grad_256)
EMU_KERNEL(layer_norm_grad_512)
EMU_KERNEL(layer_norm_grad_768)
EMU_KERNEL(layer_norm_grad_1024)
EMU_KERNEL(layer_norm_grad_2048)
EMU_KERNEL(layer_norm_grad_sum)
