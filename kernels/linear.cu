// A linear layer y = x w^T + b, with what follows it in a transformer folded in, and its gradients:
//
//   linear                  y = x w^T + b                          linear_real the same, left in f32
//   linear_gelu             h = x w^T + b, y = gelu(h)
//   linear_residual         y = skip + scale (x w^T + b)
//   linear_input_grad       dx = dy w                              linear_input_grad_gelu times gelu'(h)
//   linear_weight_grad      dw = dy^T x, db = the sums of dy's columns, over a split of the rows
//   split_sum               adds the splits
//   gelu_grad               dh = dy gelu'(h) + direct
//
// The products are those of gemm.cuh, in Large tiles or, with the ending _small, in Small ones: how the work
// is split, what bounds it and what extents it takes stands there. The last two are bound by
// memory: vectors of 16 bytes. Activations and operands are bf16; b, db, dw and scale are f32.
#include "gelu.cuh"
#include "gemm.cuh"

using namespace gemm;

// --- What is left ------------------------------------------------------------------------------------------

// y = values.
template <class Tile, class Out>
struct Plain {
  Out* y;  // [m, n]
  int n;

  __device__ __forceinline__ void operator()(int row, int col, const float (&values)[8]) const {
    store_eight<Tile>(y + static_cast<size_t>(row) * n + col, n - col, values);
  }
};

// h = values, y = gelu(h): of h as it is left, in bf16, which is what its gradient will read.
template <class Tile>
struct WithGelu {
  bf16 *h, *y;  // [m, n]
  int n;

  __device__ __forceinline__ void operator()(int row, int col, float (&values)[8]) const {
    const size_t at = static_cast<size_t>(row) * n + col;
    store_eight<Tile>(h + at, n - col, values);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = gelu(__bfloat162float(__float2bfloat16_rn(values[i])));
    store_eight<Tile>(y + at, n - col, values);
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
    load_eight<Tile>(skip + at, n - col, kept);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] = kept[i] + factor * values[i];
    store_eight<Tile>(y + at, n - col, values);
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
    load_eight<Tile>(h + at, n - col, before);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] *= gelu_slope(before[i]);
    store_eight<Tile>(dh + at, n - col, values);
  }
};

// --- Forward -----------------------------------------------------------------------------------------------

// Leaves x w^T + b, [m, n]. The sums begin with b.
template <class Tile, class Leave>
__device__ __forceinline__ void affine(
    const bf16* x, const bf16* w, const float* b, int m, int n, int k, const Leave& leave) {
  using Q = Quarter<Tile>;
  const Corner at = corner<Tile>(m, n);
  Q c;
#pragma unroll
  for (int j = 0; j < Q::N; j++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const int col = at.n + Q::n() + j * 8 + lane_id() % 4 * 2 + e;
      const float bias = col < n ? b[col] : 0.0f;
#pragma unroll
      for (int i = 0; i < Q::M; i++) c.sum[i][j][e] = c.sum[i][j][2 + e] = bias;
    }
  }
  multiply<Tile, Along::K, Along::K>(c, Matrix{x, m, k}, Matrix{w, n, k}, at, 0, k);
  for_each_eight(c, at, m, n, leave);
}

template <class Tile, class Out>
__device__ __forceinline__ void plain(
    const bf16* x, const bf16* w, const float* b, Out* y, int m, int n, int k) {
  affine<Tile>(x, w, b, m, n, k, Plain<Tile, Out>{y, n});
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) linear(
    const bf16* __restrict__ x,   // [m, k]
    const bf16* __restrict__ w,   // [n, k]
    const float* __restrict__ b,  // [n]
    bf16* __restrict__ y,         // [m, n]
    int m, int n, int k) {
  plain<Large>(x, w, b, y, m, n, k);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) linear_small(
    const bf16* __restrict__ x,   // [m, k]
    const bf16* __restrict__ w,   // [n, k]
    const float* __restrict__ b,  // [n]
    bf16* __restrict__ y,         // [m, n]
    int m, int n, int k) {
  plain<Small>(x, w, b, y, m, n, k);
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) linear_real(
    const bf16* __restrict__ x,   // [m, k]
    const bf16* __restrict__ w,   // [n, k]
    const float* __restrict__ b,  // [n]
    float* __restrict__ y,        // [m, n]
    int m, int n, int k) {
  plain<Large>(x, w, b, y, m, n, k);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) linear_real_small(
    const bf16* __restrict__ x,   // [m, k]
    const bf16* __restrict__ w,   // [n, k]
    const float* __restrict__ b,  // [n]
    float* __restrict__ y,        // [m, n]
    int m, int n, int k) {
  plain<Small>(x, w, b, y, m, n, k);
}

template <class Tile>
__device__ __forceinline__ void with_gelu(
    const bf16* x, const bf16* w, const float* b, bf16* h, bf16* y, int m, int n, int k) {
  affine<Tile>(x, w, b, m, n, k, WithGelu<Tile>{h, y, n});
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) linear_gelu(
    const bf16* __restrict__ x,   // [m, k]
    const bf16* __restrict__ w,   // [n, k]
    const float* __restrict__ b,  // [n]
    bf16* __restrict__ h,         // [m, n]
    bf16* __restrict__ y,         // [m, n]
    int m, int n, int k) {
  with_gelu<Large>(x, w, b, h, y, m, n, k);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) linear_gelu_small(
    const bf16* __restrict__ x,   // [m, k]
    const bf16* __restrict__ w,   // [n, k]
    const float* __restrict__ b,  // [n]
    bf16* __restrict__ h,         // [m, n]
    bf16* __restrict__ y,         // [m, n]
    int m, int n, int k) {
  with_gelu<Small>(x, w, b, h, y, m, n, k);
}

template <class Tile>
__device__ __forceinline__ void with_residual(
    const bf16* x, const bf16* w, const float* b, const bf16* skip, bf16* y, int m, int n, int k,
    const float* scale, int rows_per_sample) {
  affine<Tile>(x, w, b, m, n, k, WithResidual<Tile>{skip, scale, y, n, rows_per_sample});
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) linear_residual(
    const bf16* __restrict__ x,       // [m, k]
    const bf16* __restrict__ w,       // [n, k]
    const float* __restrict__ b,      // [n]
    const bf16* __restrict__ skip,    // [m, n]
    bf16* __restrict__ y,             // [m, n]
    int m, int n, int k,
    const float* __restrict__ scale,  // [m / rows_per_sample], or null for 1
    int rows_per_sample) {
  with_residual<Large>(x, w, b, skip, y, m, n, k, scale, rows_per_sample);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) linear_residual_small(
    const bf16* __restrict__ x,       // [m, k]
    const bf16* __restrict__ w,       // [n, k]
    const float* __restrict__ b,      // [n]
    const bf16* __restrict__ skip,    // [m, n]
    bf16* __restrict__ y,             // [m, n]
    int m, int n, int k,
    const float* __restrict__ scale,  // [m / rows_per_sample], or null for 1
    int rows_per_sample) {
  with_residual<Small>(x, w, b, skip, y, m, n, k, scale, rows_per_sample);
}

// --- Gradients ---------------------------------------------------------------------------------------------

// Leaves dx = dy w, [m, k].
template <class Tile, class Leave>
__device__ __forceinline__ void input_grad(
    const bf16* dy, const bf16* w, int m, int n, int k, const Leave& leave) {
  const Corner at = corner<Tile>(m, k);
  Quarter<Tile> c = {};
  multiply<Tile, Along::K, Along::MN>(c, Matrix{dy, m, n}, Matrix{w, n, k}, at, 0, n);
  for_each_eight(c, at, m, k, leave);
}

template <class Tile>
__device__ __forceinline__ void plain_input_grad(
    const bf16* dy, const bf16* w, bf16* dx, int m, int n, int k) {
  input_grad<Tile>(dy, w, m, n, k, Plain<Tile, bf16>{dx, k});
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) linear_input_grad(
    const bf16* __restrict__ dy,  // [m, n]
    const bf16* __restrict__ w,   // [n, k]
    bf16* __restrict__ dx,        // [m, k]
    int m, int n, int k) {
  plain_input_grad<Large>(dy, w, dx, m, n, k);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) linear_input_grad_small(
    const bf16* __restrict__ dy,  // [m, n]
    const bf16* __restrict__ w,   // [n, k]
    bf16* __restrict__ dx,        // [m, k]
    int m, int n, int k) {
  plain_input_grad<Small>(dy, w, dx, m, n, k);
}

template <class Tile>
__device__ __forceinline__ void input_grad_with_gelu(
    const bf16* dy, const bf16* w, const bf16* h, bf16* dh, int m, int n, int k) {
  input_grad<Tile>(dy, w, m, n, k, TimesGeluSlope<Tile>{h, dh, k});
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) linear_input_grad_gelu(
    const bf16* __restrict__ dy,  // [m, n]
    const bf16* __restrict__ w,   // [n, k]
    const bf16* __restrict__ h,   // [m, k]
    bf16* __restrict__ dh,        // [m, k]
    int m, int n, int k) {
  input_grad_with_gelu<Large>(dy, w, h, dh, m, n, k);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR)
linear_input_grad_gelu_small(
    const bf16* __restrict__ dy,  // [m, n]
    const bf16* __restrict__ w,   // [n, k]
    const bf16* __restrict__ h,   // [m, k]
    bf16* __restrict__ dh,        // [m, k]
    int m, int n, int k) {
  input_grad_with_gelu<Small>(dy, w, h, dh, m, n, k);
}

// dw = dy^T x, [n, k], and db, the sums of dy's columns, [n], over `rows` rows: the part of one split,
// which lies blockIdx.y `stride` behind dw and db. The sums of columns are made by the first column of tiles.
template <class Tile>
__device__ __forceinline__ void weight_grad(
    const bf16* dy, const bf16* x, float* dw, float* db, int m, int n, int k, int rows, int stride) {
  using Q = Quarter<Tile>;
  const int from = blockIdx.y * rows, to = min(m, from + rows);
  const Corner at = corner<Tile>(n, k);
  const bool row_sums = at.n + Q::n() == 0;
  Q c = {};
  multiply<Tile, Along::MN, Along::MN, true>(c, Matrix{dy, to, n}, Matrix{x, to, k}, at, from, to, row_sums);
  const size_t part = static_cast<size_t>(blockIdx.y) * stride;
  for_each_eight(c, at, n, k, Plain<Tile, float>{dw + part, k});
  if (row_sums && lane_id() % 4 == 0) {
#pragma unroll
    for (int i = 0; i < Q::M; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = at.m + Q::m() + i * 16 + half * 8 + lane_id() / 4;
        if (row < n) db[part + row] = c.row_sum[i][half * 2];
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) linear_weight_grad(
    const bf16* __restrict__ dy,  // [m, n]
    const bf16* __restrict__ x,   // [m, k]
    float* __restrict__ dw,       // [n, k], of each split
    float* __restrict__ db,       // [n], of each split
    int m, int n, int k, int rows, int stride) {
  weight_grad<Large>(dy, x, dw, db, m, n, k, rows, stride);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) linear_weight_grad_small(
    const bf16* __restrict__ dy,  // [m, n]
    const bf16* __restrict__ x,   // [m, k]
    float* __restrict__ dw,       // [n, k], of each split
    float* __restrict__ db,       // [n], of each split
    int m, int n, int k, int rows, int stride) {
  weight_grad<Small>(dy, x, dw, db, m, n, k, rows, stride);
}

// dw and db from the parts that the splits have left, added in their order. A thread takes 4 numbers.
extern "C" __global__ void __launch_bounds__(256) split_sum(
    const float* __restrict__ parts,  // [splits, stride]: dw, db, and up to 3 that do not count
    float* __restrict__ dw,           // [weights]
    float* __restrict__ db,           // [n]
    int splits, int weights, int n, int stride) {
  const int at = (blockIdx.x * 256 + threadIdx.x) * 4;
  if (at >= weights + n) return;
  float sum[4] = {};
#pragma unroll 4
  for (int split = 0; split < splits; split++) {
    float part[4];
    load(parts + static_cast<size_t>(split) * stride + at, part);
#pragma unroll
    for (int i = 0; i < 4; i++) sum[i] += part[i];
  }
  if (at + 4 <= weights) return store(dw + at, sum);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (at + i < weights) {
      dw[at + i] = sum[i];
    } else if (at + i < weights + n) {
      db[at + i - weights] = sum[i];
    }
  }
}

// A thread takes 8 numbers.
extern "C" __global__ void __launch_bounds__(256) gelu_grad(
    const bf16* __restrict__ h,       // [count]
    const bf16* __restrict__ dy,      // [count]
    const bf16* __restrict__ direct,  // [count], or null for 0
    bf16* __restrict__ dh,            // [count]
    int count) {
  const int at = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (at >= count) return;
  float before[8], gradient[8], more[8] = {};
  load_eight<Small>(h + at, count - at, before);
  load_eight<Small>(dy + at, count - at, gradient);
  if (direct) load_eight<Small>(direct + at, count - at, more);
#pragma unroll
  for (int i = 0; i < 8; i++) gradient[i] = gradient[i] * gelu_slope(before[i]) + more[i];
  store_eight<Small>(dh + at, count - at, gradient);
}

EMU_KERNEL(linear)
EMU_KERNEL(linear_small)
EMU_KERNEL(linear_real)
EMU_KERNEL(linear_real_small)
EMU_KERNEL(linear_gelu)
EMU_KERNEL(linear_gelu_small)
EMU_KERNEL(linear_residual)
EMU_KERNEL(linear_residual_small)
EMU_KERNEL(linear_input_grad)
EMU_KERNEL(linear_input_grad_small)
EMU_KERNEL(linear_input_grad_gelu)
EMU_KERNEL(linear_input_grad_gelu_small)
EMU_KERNEL(linear_weight_grad)
EMU_KERNEL(linear_weight_grad_small)
EMU_KERNEL(split_sum)
EMU_KERNEL(gelu_grad)
