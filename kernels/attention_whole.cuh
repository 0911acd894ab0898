// A whole head in shared memory, on Hopper: its tiles, and the statistics of its rows for the gradient.
#pragma once
#include "attention_sm90.cuh"

namespace hopper {

// Tiles of all rows, a whole number of `unit` of them, one after the other, and behind them a barrier that is passed
// once all have come.
struct Tiles {
  bf16* first;
  int rows;

  __device__ __forceinline__ Tiles(bf16* first, int length, int unit)
      : first(first), rows((length + unit - 1) / unit * unit) {}

  __device__ __forceinline__ bf16* operator[](int i) const { return first + i * rows * HEAD_WIDTH; }

  // Loads COUNT tiles, of the columns that `columns(i)` says, in boxes of all rows or, if they are more than a box can
  // have, of half of them.
  template <int COUNT, class ColumnsOf>
  __device__ __forceinline__ void begin_load(const ColumnsOf& columns) const {
    if (threadIdx.x == 0) {
      const uint32_t barrier = ptx::smem_u32((*this)[COUNT]);
      ptx::mbar_init(barrier, 1);
      ptx::mbar_fence_init();
      ptx::mbar_arrive_expect_tx(barrier, COUNT * rows * HEAD_WIDTH * sizeof(bf16));
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        const Columns from = columns(i);
        const uint32_t tile = ptx::smem_u32((*this)[i]);
        ptx::tma_load_3d(tile, from.map, from.col, 0, blockIdx.z, barrier);
        if (rows > 256) ptx::tma_load_3d(tile + rows * HEAD_WIDTH, from.map, from.col, rows / 2, blockIdx.z, barrier);
      }
    }
    __syncthreads();
  }
  template <int COUNT>
  __device__ __forceinline__ void await() const {
    ptx::mbar_wait(ptx::smem_u32((*this)[COUNT]), 0);
  }
};

// The tiles of a gradient.
enum { Q, K, V, DY, Y, GRADIENT_TILES };

// Begins to load them, waits for them, and leaves behind them the rows' statistics, which all threads may read then. There
// is a thread for each row.
__device__ __forceinline__ const Statistics* load_for_gradient(
    const Tiles& tiles, const TensorMap* qkv, const TensorMap* dy, const TensorMap* y,
    const float* __restrict__ log_sum, int length) {
  const int heads = gridDim.y, h = blockIdx.y;
  tiles.begin_load<GRADIENT_TILES>([&](int i) {
    if (i <= V) return Columns{qkv, (i * heads + h) * HEAD_WIDTH};
    return Columns{i == DY ? dy : y, h * HEAD_WIDTH};
  });
  Statistics* const statistics = reinterpret_cast<Statistics*>(tiles[GRADIENT_TILES]) + 2;
  const int row = threadIdx.x;
  const float row_log_sum = row < length ? log_sum[row] * LOG2_E : 0.0f;
  tiles.await<GRADIENT_TILES>();
  if (row < tiles.rows) {
    float delta = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < HEAD_WIDTH / 8; chunk++) {
      float terms[8], other[8];
      load(tiles[DY] + tile_at<HEAD_WIDTH>(row, chunk), terms);
      load(tiles[Y] + tile_at<HEAD_WIDTH>(row, chunk), other);
#pragma unroll
      for (int c = 0; c < 8; c++) terms[c] *= other[c];
      delta += sum(terms);
    }
    statistics[row] = make_float2(row_log_sum, delta);
  }
  __syncthreads();
  return statistics;
}

}  // namespace hopper
