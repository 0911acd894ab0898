// Sums, each in one fixed order, so that the same numbers give the same bits.
//
// Sums over rows come in two stages: each block of the first kernel leaves its part in memory, a second
// kernel adds the parts in the order of the blocks. No atomics.
#pragma once

#include "ptx.cuh"
#include "vec.cuh"

// Columns that a warp takes of a matrix: a vector of 8 bf16 a lane.
constexpr int WARP_COLS = 32 * 8;

// The sum over the lanes of the warp, on each of them: of each pair both lanes compute a + b = b + a.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
  return v;
}

// The sum over the threads of the block (whole warps), on each of them.
template <class T>
__device__ __forceinline__ T block_sum(T v) {
  __shared__ T parts[32];
  v = warp_sum(v);
  __syncthreads();  // parts may still be read from the last call
  if (lane_id() == 0) parts[warp_id()] = v;
  __syncthreads();
  return warp_sum(lane_id() < blockDim.x / 32 ? parts[lane_id()] : T(0));
}

// Adds rows first, first + step, ... below `end` to `total`, in that order: 8 columns a thread. `x` is this
// thread's part of row 0, `stride` leads from row to row. Four loads are under way at once.
__device__ __forceinline__ void add_rows(const bf16* __restrict__ x, int first, int end, int step,
                                         size_t stride, float (&total)[8]) {
  constexpr int UNROLL = 4;
  for (int row = first; row < end; row += UNROLL * step) {
    uint4 bits[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int at = row + u * step;
      bits[u] = at < end ? load(x + at * stride) : zeros();
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      float v[8];
      unpack(bits[u], v);
#pragma unroll
      for (int i = 0; i < 8; i++) total[i] += v[i];
    }
  }
}

// Each warp of the block holds a term of each of WARP_COLS sums, 8 a lane: gives sum t to thread t.
template <int WARPS>
__device__ __forceinline__ float sum_over_warps(const float (&terms)[8]) {
  static_assert(32 * WARPS >= WARP_COLS, "a thread for each sum");
  __shared__ float4 parts[WARPS][WARP_COLS / 4];
  __syncthreads();  // parts may still be read from the last call
  float4* mine = &parts[warp_id()][2 * lane_id()];
  mine[0] = make_float4(terms[0], terms[1], terms[2], terms[3]);
  mine[1] = make_float4(terms[4], terms[5], terms[6], terms[7]);
  __syncthreads();
  float sum = 0;
  if (threadIdx.x < WARP_COLS) {
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += reinterpret_cast<const float*>(parts[warp])[threadIdx.x];
  }
  return sum;
}

// The second stage: the sum over rows of column 32 blockIdx.x + lane of parts [count, cols], on each warp of
// a block of 1024. Each warp adds a run of rows, then the runs are added.
__device__ __forceinline__ float sum_parts(const float* __restrict__ parts, int count, int cols) {
  constexpr int WARPS = 32, UNROLL = 8;
  __shared__ float runs[WARPS][32];
  const int col = 32 * blockIdx.x + lane_id();
  const int run = (count + WARPS - 1) / WARPS;
  const int end = min(count, (warp_id() + 1) * run);
  float sum = 0;
  for (int row = warp_id() * run; row < end; row += UNROLL) {
    float terms[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      terms[u] = row + u < end && col < cols ? parts[static_cast<size_t>(row + u) * cols + col] : 0;
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) sum += terms[u];
  }
  runs[warp_id()][lane_id()] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) sum += runs[warp][lane_id()];
  return sum;
}
