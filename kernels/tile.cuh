// How tiles of bf16 lie in shared memory.
//
// A tile has rows of COLS elements (64 or 128: one or two times all 32 banks) in chunks of 8 elements, 16 bytes, what
// cp.async moves and ldmatrix reads. Chunk c of row r is stored at place c ^ (r & 7), so that the eight rows which one
// 8x8 matrix of ldmatrix reads at the same chunk lie in different banks.
#pragma once

// Element at which chunk `chunk` of row `row` begins.
template <int COLS>
__device__ __forceinline__ int tile_at(int row, int chunk) {
  static_assert(COLS % 64 == 0, "rows shorter than all banks would need another pattern");
  return row * COLS + ((chunk ^ (row & 7)) * 8);
}
