// The host twin of ptx.cuh, function for function; what the functions do is said there.
#pragma once

#include "emu.hpp"

// Stands for CUtensorMap, of the same size and alignment. Made by emu_tensor_map.
struct alignas(128) TensorMap {
  static constexpr uint32_t MAGIC = 0x7e45012a;
  uint32_t magic;
  uint32_t element_bytes;
  uint32_t swizzle_128b;
  uint32_t box[3];  // elements, x first
  const void* tensor;
  uint64_t extent[3];  // elements
  uint64_t stride[2];  // bytes from y to y + 1, from z to z + 1
};
static_assert(sizeof(TensorMap) == 128);

namespace emu {

struct Mma {
  const uint32_t* a;
  const uint32_t* b;
  float* c;
};
void mma(uint32_t mask, void* const* lanes);

struct Ldmatrix {
  uint16_t row[8];
  uint32_t received[4];
  unsigned matrices;
  bool transpose;
};
void ldmatrix(uint32_t mask, void* const* lanes);
void read_matrix_row(uint16_t (&row)[8], uint32_t address);

template <unsigned MATRICES>
void load_matrices(uint32_t (&received)[MATRICES], uint32_t address, bool transpose) {
  Ldmatrix lane{{}, {}, MATRICES, transpose};
  if (emu::lane() < MATRICES * 8) {
    read_matrix_row(lane.row, address);
  }
  warp_collective(Collective::Ldmatrix, ~0u, ldmatrix, &lane);
  for (unsigned i = 0; i < MATRICES; i++) {
    received[i] = lane.received[i];
  }
}

struct Stmatrix {
  const uint32_t* brought;
  uint16_t row[8];
};
void stmatrix(uint32_t mask, void* const* lanes);
void write_matrix_row(uint32_t address, const uint16_t (&row)[8]);

// Copies `read` bytes and zeroes the rest of `bytes`.
void async_copy(uint32_t to, const void* from, unsigned bytes, unsigned read);
void async_copy_commit();
void async_copy_wait(unsigned pending);

void mbarrier_init(uint32_t barrier, unsigned arrivals);
void mbarrier_arrive(uint32_t barrier, uint32_t expected_bytes);
void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank);
void mbarrier_wait(uint32_t barrier, uint32_t parity);

void tma_load(uint32_t to, const TensorMap* map, int x, int y, int z, uint32_t barrier);
void tma_load_multicast(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier, uint16_t mask);
void tma_store(const TensorMap* map, int x, int y, int z, uint32_t from);
void tma_store_commit();
void tma_store_wait_read(unsigned pending);
void tma_store_wait(unsigned pending);
void fence_proxy_async();

struct Wgmma {
  uint64_t a;
  uint64_t b;
  float* d;
  unsigned n;
  bool accumulate;
  bool transpose_a;
  bool transpose_b;
  const uint32_t* a_registers;  // or null: then `a` describes a tile
};
void wgmma(const Wgmma& operation);
void wgmma_commit();
void wgmma_wait(unsigned pending);

}  // namespace emu

namespace ptx {

inline uint32_t smem_u32(const void* pointer) {
  return emu::shared_address(pointer);
}

inline void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emu::Mma lane{a, b, c};
  emu::warp_collective(emu::Collective::Mma, ~0u, emu::mma, &lane);
}

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  emu::load_matrices(r, row, false);
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  emu::load_matrices(r, row, true);
}

inline void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
  emu::load_matrices(r, row, false);
}

inline void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
  emu::load_matrices(r, row, true);
}

inline void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
  emu::Stmatrix lane{r, {}};
  emu::warp_collective(emu::Collective::Stmatrix, ~0u, emu::stmatrix, &lane);
  emu::write_matrix_row(row, lane.row);
}

inline void cp_async16(uint32_t to, const void* from, int bytes = 16) {
  emu::async_copy(to, from, 16, bytes);
}

inline void cp_async8(uint32_t to, const void* from, int bytes = 8) {
  emu::async_copy(to, from, 8, bytes);
}

inline void cp_async4(uint32_t to, const void* from, int bytes = 4) {
  emu::async_copy(to, from, 4, bytes);
}

inline void cp_async_commit() {
  emu::async_copy_commit();
}

template <int PENDING>
void cp_async_wait() {
  emu::async_copy_wait(PENDING);
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

inline float rcp_approx(float x) {
  const float y = 1.0f / (std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x);
  return std::fabs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y;
}

inline void bar_sync(int barrier, int threads) {
  emu::block_barrier(barrier, threads, true);
}

inline void bar_arrive(int barrier, int threads) {
  emu::block_barrier(barrier, threads, false);
}

inline uint32_t cluster_rank() {
  return emu::cluster_rank();
}

inline void cluster_sync() {
  emu::cluster_barrier();
}

inline void mbar_init(uint32_t barrier, unsigned arrivals) {
  emu::mbarrier_init(barrier, arrivals);
}

inline void mbar_fence_init() {
}

inline void mbar_arrive(uint32_t barrier) {
  emu::mbarrier_arrive(barrier, 0);
}

inline void mbar_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  emu::mbarrier_arrive(barrier, bytes);
}

inline void mbar_arrive_remote(uint32_t barrier, uint32_t rank) {
  emu::mbarrier_arrive_remote(barrier, rank);
}

inline void mbar_wait(uint32_t barrier, uint32_t parity) {
  emu::mbarrier_wait(barrier, parity);
}

inline void tma_load_2d(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier) {
  emu::tma_load(to, map, x, y, 0, barrier);
}

inline void tma_load_2d_multicast(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier,
                                  uint16_t mask) {
  emu::tma_load_multicast(to, map, x, y, barrier, mask);
}

inline void tma_load_3d(uint32_t to, const TensorMap* map, int x, int y, int z, uint32_t barrier) {
  emu::tma_load(to, map, x, y, z, barrier);
}

inline void tma_store_3d(const TensorMap* map, int x, int y, int z, uint32_t from) {
  emu::tma_store(map, x, y, z, from);
}

inline void tma_store_commit() {
  emu::tma_store_commit();
}

template <int PENDING>
void tma_store_wait_read() {
  emu::tma_store_wait_read(PENDING);
}

template <int PENDING>
void tma_store_wait() {
  emu::tma_store_wait(PENDING);
}

inline void tma_prefetch_desc(const TensorMap*) {
}

inline void fence_proxy_async() {
  emu::fence_proxy_async();
}

inline void wgmma_fence() {
}

inline void wgmma_commit() {
  emu::wgmma_commit();
}

template <int PENDING>
void wgmma_wait() {
  emu::wgmma_wait(PENDING);
}

template <int REGISTERS>
void setmaxnreg_inc() {
}

template <int REGISTERS>
void setmaxnreg_dec() {
}

template <int N, int TRANS_A = 0, int TRANS_B = 0>
void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
  static_assert(N == 8 || N == 32 || N == 64 || N == 128 || N == 256, "ptx.cuh has these");
  emu::wgmma({a, b, d, N, accumulate != 0, TRANS_A != 0, TRANS_B != 0, nullptr});
}

template <int N, int TRANS_B = 0>
void wgmma_bf16_from_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  static_assert(N == 64, "ptx.cuh has this");
  emu::wgmma({0, b, d, N, accumulate != 0, false, TRANS_B != 0, a});
}

}  // namespace ptx
