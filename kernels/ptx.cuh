// The only inline PTX: one instruction a function. emu/ptx_emu.hpp is its host twin, function for function,
// and the kernels of conformance.cu and conformance_sm90.cu write down what each of them does, so that the
// two can be compared.
//
// Shared memory is addressed by 32-bit numbers (smem_u32), sizes and offsets are in bytes, tiles hold bf16.
#pragma once

#ifdef CUDA_EMU
#include "emu/ptx_emu.hpp"
#else

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// The dynamic shared memory of the block, as a `Type*` called `name`. 1024: what a tile with 128-byte swizzle
// needs.
#define DYN_SMEM(Type, name)                                      \
  extern __shared__ __align__(1024) unsigned char name##_bytes[]; \
  Type* name = reinterpret_cast<Type*>(name##_bytes)

// Registers a kernel with the emulator; the driver finds kernels by itself. The second is for those with
// __cluster_dims__(blocks, 1, 1).
#define EMU_KERNEL(kernel)
#define EMU_KERNEL_IN_CLUSTERS(kernel, blocks)

using TensorMap = CUtensorMap;

#define PTX static __device__ __forceinline__

namespace ptx {

PTX uint32_t smem_u32(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// c[16][8] += a[16][16] * b[16][8], f32 += bf16 * bf16, by one warp. With g = lane / 4 and t = lane % 4,
// register r and half h (0 low, 1 high) of a lane hold
//   a[g + 8 (r & 1)][2 t + h + 8 (r >> 1)],  b[2 t + h + 8 r][g],  c[g + 8 (r >> 1)][2 t + (r & 1)].
PTX void mma_m16n8k16_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8x8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8 (16 bytes, aligned), and gets
// of each matrix the elements [l / 4][2 (l % 4) + 0, 1]; of its transpose with `trans`.
PTX void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

PTX void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// Two matrices: the rows are named by lanes 0..15.
PTX void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}

PTX void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(row)
               : "memory");
}

// 16 bytes from global to shared memory, past L1; of these the last 16 - bytes are not read and become zeros.
PTX void cp_async16(uint32_t to, const void* from, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

PTX void cp_async8(uint32_t to, const void* from, int bytes = 8) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

PTX void cp_async4(uint32_t to, const void* from, int bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes the group of the copies that this thread has issued since the last one.
PTX void cp_async_commit() {
  asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most PENDING groups of this thread are under way. Other threads' copies: a barrier after it.
template <int PENDING>
PTX void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

// 2^x to about 2 units in the last place; what is below the smallest normal number becomes 0.
PTX float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to 1 unit in the last place; of what is below the smallest normal number infinity.
PTX float rcp_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

PTX void bar_sync(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

// Counts this thread in without making it wait.
PTX void bar_arrive(int barrier, int threads) {
  asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// The inverse of ldmatrix_x4: lane l names row l % 8 of matrix l / 8 (16 bytes, aligned), and brings of each matrix
// the elements [l / 4][2 (l % 4) + 0, 1].
PTX void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};\n" ::"r"(row), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// Which block of its cluster this one is.
PTX uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}

// A barrier of all threads of all blocks of a cluster, but for those that have ended. One must precede whatever a block
// does in the shared memory of another, and one must follow it: a block that has ended has no shared memory.
PTX void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

// A barrier in shared memory, 8 bytes: its phase ends after `arrivals` arrivals and all bytes expected.
PTX void mbar_init(uint32_t barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes mbar_init visible to the units that copy; a block barrier must follow.
PTX void mbar_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

PTX void mbar_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

PTX void mbar_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Arrives at the barrier at the same place in block `rank` of the cluster, to give back what this block has read there
// or here. It hands over no data: a release for the other block would be a fence of the whole device (MEMBAR.ALL.GPU).
PTX void mbar_arrive_remote(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

// Waits for the end of the phase of this parity: 0 the first, 1 the second, 0 the third; parity 1 passes at
// once on a fresh barrier. The same for what another block of the cluster loads or gives back: to acquire for the
// cluster would empty the cache of global memory (CCTL.IVALL), and changes nothing for shared memory.
PTX void mbar_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "AGAIN_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra AGAIN_%=;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// A box of a tensor in global memory to shared memory; the bytes are counted off at the barrier. What lies
// outside the tensor arrives as zeros, and counts. x is the coordinate along contiguous memory.
PTX void tma_load_2d(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

// The same to each block of the cluster whose bit is set in `mask`: at the same place in its shared memory, counted off
// at its own barrier, also at the same place.
PTX void tma_load_2d_multicast(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier,
                               uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%3, %4}], [%2], %5;\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(mask)
      : "memory");
}

PTX void tma_load_3d(uint32_t to, const TensorMap* map, int x, int y, int z, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];\n" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// A box of shared memory to a tensor in global memory; what lies outside the tensor is not written. A thread that
// has fenced (fence_proxy_async) must have written each byte, and a barrier must lie between. The box may not change
// before the store has read it, nor may the block end.
PTX void tma_store_3d(const TensorMap* map, int x, int y, int z, uint32_t from) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];\n" ::"l"(map),
               "r"(from), "r"(x), "r"(y), "r"(z)
               : "memory");
}

// Closes the group of the stores that this thread has issued since the last one.
PTX void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;\n" ::: "memory");
}

// Waits until all but PENDING of this thread's groups have read shared memory.
template <int PENDING>
PTX void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;\n" ::"n"(PENDING) : "memory");
}

// Waits until all but PENDING of this thread's groups are written. The end of the kernel waits for all of them.
template <int PENDING>
PTX void tma_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

PTX void tma_prefetch_desc(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}

// Makes this thread's plain stores to shared memory visible to wgmma and TMA; a barrier must follow.
PTX void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

// Orders the registers that wgmma uses after what was done to them before.
PTX void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}

PTX void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}

// Waits until at most PENDING groups of this warpgroup are under way.
template <int PENDING>
PTX void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(PENDING) : "memory");
}

// Gives registers back, or takes them: all warps of a warpgroup, in a kernel with __launch_bounds__(threads,
// 1).
template <int REGISTERS>
PTX void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

template <int REGISTERS>
PTX void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(REGISTERS));
}

// An asm statement must list its operands one by one: here are the accumulators of wgmma, by eights.
#define WGMMA_D8(d, i)                                                                                    \
  "+f"(d[(i)]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), \
      "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define WGMMA_D32(d, i) WGMMA_D8(d, i), WGMMA_D8(d, (i) + 8), WGMMA_D8(d, (i) + 16), WGMMA_D8(d, (i) + 24)
#define WGMMA_0_15 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_0_31 \
  WGMMA_0_15 ", "  \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_32_63                                                                  \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_64_127                                                                             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

template <int TRANS_A, int TRANS_B>
PTX void wgmma_issue(float (&d)[4], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, p, 1, 1, %7, %8;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));
}

template <int TRANS_A, int TRANS_B>
PTX void wgmma_issue(float (&d)[16], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" WGMMA_0_15 "}, %16, %17, p, 1, 1, %19, %20;\n}\n"
      : WGMMA_D8(d, 0), WGMMA_D8(d, 8)
      : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));
}

template <int TRANS_A, int TRANS_B>
PTX void wgmma_issue(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_0_31
      "}, %32, %33, p, 1, 1, %35, %36;\n}\n"
      : WGMMA_D32(d, 0)
      : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));
}

template <int TRANS_A, int TRANS_B>
PTX void wgmma_issue(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_0_31 ", " WGMMA_32_63
      "}, %64, %65, p, 1, 1, %67, %68;\n}\n"
      : WGMMA_D32(d, 0), WGMMA_D32(d, 32)
      : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));
}

template <int TRANS_A, int TRANS_B>
PTX void wgmma_issue(float (&d)[128], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" WGMMA_0_31 ", " WGMMA_32_63 ", " WGMMA_64_127
      "}, %128, %129, p, 1, 1, %131, %132;\n}\n"
      : WGMMA_D32(d, 0), WGMMA_D32(d, 32), WGMMA_D32(d, 64), WGMMA_D32(d, 96)
      : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B));
}

// d[64][N] = a[64][16] * b[16][N], += with `accumulate`, by one warpgroup, N = 8, 32, 64, 128 or 256; a and b are
// descriptors (desc_sw128) of tiles that run along K, or along M and N with TRANS. Register r of thread t
// holds, with w = t / 32 and l = t % 32, d[16 w + l / 4 + 8 (r / 2 % 2)][8 (r / 4) + 2 (l % 4) + r % 2].
template <int N, int TRANS_A = 0, int TRANS_B = 0>
PTX void wgmma_bf16(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {
  wgmma_issue<TRANS_A, TRANS_B>(d, a, b, accumulate);
}

// The same with a in registers: each warp's 16 rows as mma_m16n8k16_bf16 has them. They must not change before
// the product has been waited for.
template <int N, int TRANS_B = 0>
PTX void wgmma_bf16_from_registers(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  static_assert(N == 64, "that of the values of a head");
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_0_31
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"
      : WGMMA_D32(d, 0)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(TRANS_B));
}

#endif

}  // namespace ptx
#endif

namespace ptx {

// What wgmma is told of a tile with 128-byte swizzle: 64 elements a row, 8 rows are 1024 bytes. Along K:
// `stride` is from 8 rows to the next 8, `lead` is unused (16). Along M or N (TRANS): `lead` is from 64
// columns to the next 64, `stride` from 8 k to the next 8.
__device__ __forceinline__ uint64_t desc_sw128(uint32_t tile, uint32_t lead, uint32_t stride) {
  constexpr uint64_t SWIZZLE_128B = 1ull << 62;
  const uint64_t address = (tile & 0x3FFFF) >> 4;
  return address | static_cast<uint64_t>(lead >> 4) << 16 | static_cast<uint64_t>(stride >> 4) << 32 |
         SWIZZLE_128B;
}

}  // namespace ptx

// The V at `pointer`, a multiple of V's size. All accesses by vectors go through here: a GPU ends a kernel that has
// another address, the emulator's processor would forgive it.
template <class V, class T>
__device__ __forceinline__ V* vector_at(T* pointer) {
#ifdef CUDA_EMU
  emu::expect_aligned(pointer, sizeof(V));
#endif
  return reinterpret_cast<V*>(pointer);
}

// Blocks are one-dimensional.
__device__ __forceinline__ int lane_id() {
  return threadIdx.x % 32;
}

__device__ __forceinline__ int warp_id() {
  return threadIdx.x / 32;
}
