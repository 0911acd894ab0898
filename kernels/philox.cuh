// Counter-based random numbers: Philox 4x32-10, as src/machine/philox.rs has it.
#pragma once

#include "ptx.cuh"

// Words that say where a stream begins: two of key, then four of counter, the first of which counts blocks.
constexpr int STREAM = 6;

// Block `block` of the stream that begins at `start` [STREAM]: words 4 block to 4 block + 3.
__device__ __forceinline__ uint4 philox(const uint32_t* __restrict__ start, uint32_t block) {
  uint32_t key[2] = {start[0], start[1]};
  uint4 c = make_uint4(start[2] + block, start[3], start[4], start[5]);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p = static_cast<uint64_t>(0xD2511F53u) * c.x;
    const uint64_t q = static_cast<uint64_t>(0xCD9E8D57u) * c.z;
    const uint32_t p_high = static_cast<uint32_t>(p >> 32), q_high = static_cast<uint32_t>(q >> 32);
    c = make_uint4(q_high ^ c.y ^ key[0], static_cast<uint32_t>(q), p_high ^ c.w ^ key[1], static_cast<uint32_t>(p));
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return c;
}

// A standard normal to three figures: the four bytes of a word summed.
__device__ __forceinline__ float quick_normal(uint32_t word) {
  const uint32_t pairs = (word & 0x00ff00ffu) + (word >> 8 & 0x00ff00ffu);
  const int sum = static_cast<int>((pairs & 0xffffu) + (pairs >> 16));
  return (sum - 510.0f) / 147.8f;
}
