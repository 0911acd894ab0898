// The words that the kernels for Hopper share: a block of warpgroups, of which one loads by TMA and the others, two
// unless a kernel says otherwise, multiply by wgmma 64 rows each, and how wgmma is told of a tile.
#pragma once
#include "ptx.cuh"

namespace hopper {

constexpr int WARPGROUP = 128, CONSUMERS = 2, THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int BLOCK_ROWS = CONSUMERS * 64;

// The registers of a thread that produces, and of one of GROUPS warpgroups that consume: together no more than what the
// block starts with, equal shares of 65,536, in eights.
template <int GROUPS>
struct Registers;

template <>
struct Registers<2> {  // 40 x 128 + 232 x 256 = 168 x 384
  static constexpr int PRODUCER = 40, CONSUMER = 232;
};

template <>
struct Registers<4> {  // 24 x 128 + 112 x 512 <= 96 x 640
  static constexpr int PRODUCER = 24, CONSUMER = 112;
};

// In a tile, by bytes: eight rows of 64 elements are one pattern of the 128-byte swizzle.
constexpr int EIGHT_ROWS = 1024, SIXTY_FOUR_ROWS = 8 * EIGHT_ROWS;

// Which 64 of the block's rows this warpgroup has, and where this warp's 16 begin among the block's.
__device__ __forceinline__ int part() {
  return warp_id() / 4 - 1;
}

__device__ __forceinline__ int warp_row() {
  return part() * 64 + warp_id() % 4 * 16;
}

// Splits the block: one thread produces, GROUPS warpgroups consume.
template <int GROUPS = CONSUMERS, class Produce, class Consume>
__device__ __forceinline__ void divide_work(const Produce& produce, const Consume& consume) {
  if (warp_id() / 4 == 0) {
    ptx::setmaxnreg_dec<Registers<GROUPS>::PRODUCER>();
    if (threadIdx.x == 0) produce();
  } else {
    ptx::setmaxnreg_inc<Registers<GROUPS>::CONSUMER>();
    consume();
  }
}

// Step number `step`, 16 elements of the sum, of a tile whose rows lie along the sum, or across it.
__device__ __forceinline__ uint64_t along(uint32_t tile, int step) {
  return ptx::desc_sw128(tile + step * 32, 16, EIGHT_ROWS);
}

__device__ __forceinline__ uint64_t across(uint32_t tile, int step) {
  return ptx::desc_sw128(tile + step * 2 * EIGHT_ROWS, SIXTY_FOUR_ROWS, EIGHT_ROWS);
}

}  // namespace hopper
