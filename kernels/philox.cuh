// Counter-based random numbers: Philox 4x32-10, as src/machine/philox.rs has it.
#pragma once
#include <stdint.h>

// A stream says where it begins in six words: two of key, then four of counter, the first of which counts blocks.
constexpr int STREAM = 6;

// Block `block` of the stream that begins at `stream`: its words 4 block to 4 block + 3.
__device__ __forceinline__ uint4 philox(const uint32_t* __restrict__ stream /* [6] */, uint32_t block) {
    uint32_t k0 = stream[0], k1 = stream[1];
    uint4 c = make_uint4(stream[2] + block, stream[3], stream[4], stream[5]);
#pragma unroll
    for (int i = 0; i < 10; ++i) {
        const uint64_t p0 = uint64_t(0xD2511F53u) * c.x;
        const uint64_t p1 = uint64_t(0xCD9E8D57u) * c.z;
        c = make_uint4(uint32_t(p1 >> 32) ^ c.y ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w ^ k1, uint32_t(p0));
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// A standard normal to three figures: the four bytes of a word summed.
__device__ __forceinline__ float quick_normal(uint32_t word) {
    const uint32_t pairs = (word & 0x00FF00FFu) + (word >> 8 & 0x00FF00FFu);
    const int sum = (pairs & 0xFFFFu) + (pairs >> 16);
    return (float(sum) - 510.0f) / 147.8f;
}
