// y[b] = mean over skip <= i < lengths[b] of x[b, i]: the mean of a sample's tokens, without the class token. Rows
// are a multiple of 8 long. Bound by memory: x is read once, or dx written once.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 16;      // of a block of mean_pool
constexpr int COLS = 128;      // that it sums, a row by each half of a warp
constexpr int GRAD_WARPS = 8;  // of mean_pool_grad
constexpr int GRAD_ROWS = 8;   // that a warp writes

}  // namespace

// A block (columns, sample): each half of a warp sums every 2 WARPS-th token, then their sums are added in order.
// Blocks are narrow so that all multiprocessors have some, 384 for 64 samples of 768 columns; 300 tokens are read in
// three rounds.
extern "C" __global__ void __launch_bounds__(32 * WARPS) mean_pool(
    const bf16* __restrict__ x,            // [B, T, D]
    const uint32_t* __restrict__ lengths,  // [B] or null: T
    bf16* __restrict__ y,                  // [B, D]
    int length, int skip, int dim) {
  const int col = blockIdx.x * COLS + 8 * (lane_id() % 16);
  const int end = lengths ? lengths[blockIdx.y] : length;
  x += static_cast<size_t>(blockIdx.y) * length * dim;
  float total[8] = {};
  if (col < dim) add_rows(x + col, skip + threadIdx.x / 16, end, 2 * WARPS, dim, total);
#pragma unroll
  for (int k = 0; k < 8; k++) total[k] += __shfl_xor_sync(~0u, total[k], 16);
  const float sum = sum_over_warps<WARPS>(total);
  const int out = blockIdx.x * COLS + threadIdx.x;
  if (threadIdx.x < COLS && out < dim) {
    y[static_cast<size_t>(blockIdx.y) * dim + out] = __float2bfloat16_rn(sum / max(end - skip, 1));
  }
}

// dx[b, i] = dy[b] / (lengths[b] - skip) for the rows that were pooled, else 0. A block (rows, columns, sample).
extern "C" __global__ void __launch_bounds__(32 * GRAD_WARPS) mean_pool_grad(
    const bf16* __restrict__ dy,           // [B, D]
    const uint32_t* __restrict__ lengths,  // [B] or null: T
    bf16* __restrict__ dx,                 // [B, T, D]
    int length, int skip, int dim) {
  const int col = blockIdx.y * WARP_COLS + 8 * lane_id();
  if (col >= dim) return;
  float token[8];
  load(dy + static_cast<size_t>(blockIdx.z) * dim + col, token);
  const int end = lengths ? lengths[blockIdx.z] : length;
  const float share = 1.0f / max(end - skip, 1);
#pragma unroll
  for (int k = 0; k < 8; k++) token[k] *= share;
  const uint4 bits = pack(token);

  dx += static_cast<size_t>(blockIdx.z) * length * dim;
#pragma unroll
  for (int r = 0; r < GRAD_ROWS; r++) {
    const int i = (blockIdx.x * GRAD_WARPS + warp_id()) * GRAD_ROWS + r;
    if (i < length) store(dx + static_cast<size_t>(i) * dim + col, i < skip || i >= end ? zeros() : bits);
  }
}

EMU_KERNEL(mean_pool)
EMU_KERNEL(mean_pool_grad)
