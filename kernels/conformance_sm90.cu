// What the primitives of sm_90 do; see conformance.cu. Blocks of 128 threads, mostly one.
#include "ptx.cuh"

namespace {

constexpr int THREADS = 128;

__device__ __forceinline__ int small(uint32_t i) {
  return static_cast<int>((i * 2654435761u) >> 28) - 8;
}

// Waits, in all threads, until one has loaded `bytes` to shared memory by `load(to, barrier)`, and writes
// them out.
template <class Load>
__device__ __forceinline__ void dump(uint32_t* __restrict__ out, int bytes, Load load) {
  DYN_SMEM(unsigned char, shared);  // [bytes], then a barrier
  const uint32_t barrier = ptx::smem_u32(shared + bytes);
  for (int i = threadIdx.x; i < bytes / 4; i += THREADS) {
    reinterpret_cast<uint32_t*>(shared)[i] = 0xABABABAB;
  }
  if (threadIdx.x == 0) {
    ptx::mbar_init(barrier, 1);
    ptx::mbar_fence_init();
  }
  ptx::fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbar_arrive_expect_tx(barrier, bytes);
    load(ptx::smem_u32(shared), barrier);
  }
  ptx::mbar_wait(barrier, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += THREADS) {
    out[i] = reinterpret_cast<const uint32_t*>(shared)[i];
  }
}

// One wgmma of k = 16 after another over 64 k, the first one without what d was before. The tiles are written
// by the threads: along K as [rows][64], or along M and N (TRANS) as [rows / 64][64 k][64].
template <int N, int TRANS_A, int TRANS_B, bool A_IN_REGISTERS = false>
__device__ __forceinline__ void multiply(uint32_t* __restrict__ out /* [N / 2][THREADS] */) {
  constexpr uint32_t EIGHT_ROWS = 1024;
  constexpr uint32_t SIXTY_FOUR_ROWS = 8 * EIGHT_ROWS;
  constexpr uint32_t DEPTH = 16;
  DYN_SMEM(__nv_bfloat16, shared);  // [64 + N][64]
  for (int i = threadIdx.x; i < (64 + N) * 64; i += THREADS) {
    const int row = i / 64;
    const int chunk = i % 64 / 8 ^ row % 8;
    shared[row * 64 + chunk * 8 + i % 8] = __float2bfloat16(small(i));
  }
  ptx::fence_proxy_async();
  __syncthreads();
  const uint32_t a = ptx::smem_u32(shared);
  const uint32_t b = a + SIXTY_FOUR_ROWS;  // of 8 columns only the first of its patterns
  const auto descriptor = [](uint32_t tile, int step, bool trans) {
    return trans ? ptx::desc_sw128(tile + step * 2 * EIGHT_ROWS, SIXTY_FOUR_ROWS, EIGHT_ROWS)
                 : ptx::desc_sw128(tile + step * DEPTH * 2, 16, EIGHT_ROWS);
  };
  float d[N / 2];
#pragma unroll
  for (int r = 0; r < N / 2; r++) {
    d[r] = 1000.0f;
  }
  uint32_t rows[4][4];
  if constexpr (A_IN_REGISTERS) {
#pragma unroll
    for (int step = 0; step < 4; step++) {
      const int row = warp_id() * 16 + lane_id() % 16, chunk = (step * 2 + lane_id() / 16) ^ row % 8;
      ptx::ldmatrix_x4(rows[step], ptx::smem_u32(shared + row * 64 + chunk * 8));
    }
  }
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; step++) {
    const uint64_t columns = descriptor(b, step, TRANS_B);
    if constexpr (A_IN_REGISTERS) {
      ptx::wgmma_bf16_from_registers<N, TRANS_B>(d, rows[step], columns, step > 0);
    } else {
      ptx::wgmma_bf16<N, TRANS_A, TRANS_B>(d, descriptor(a, step, TRANS_A), columns, step > 0);
    }
  }
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
#pragma unroll
  for (int r = 0; r < N / 2; r++) {
    out[r * THREADS + threadIdx.x] = __float_as_uint(d[r]);
  }
}

}  // namespace

// A box of a map, with or without swizzle, that begins at (x, y), which may lie outside the tensor.
extern "C" __global__ void __launch_bounds__(THREADS)
    conform_tma_2d(const __grid_constant__ TensorMap map, int x, int y, int bytes,
                   uint32_t* __restrict__ out /* [bytes / 4] */) {
  dump(out, bytes, [&](uint32_t to, uint32_t barrier) { ptx::tma_load_2d(to, &map, x, y, barrier); });
}
EMU_KERNEL(conform_tma_2d)

extern "C" __global__ void __launch_bounds__(THREADS)
    conform_tma_3d(const __grid_constant__ TensorMap map, int x, int y, int z, int bytes,
                   uint32_t* __restrict__ out /* [bytes / 4] */) {
  dump(out, bytes, [&](uint32_t to, uint32_t barrier) { ptx::tma_load_3d(to, &map, x, y, z, barrier); });
}
EMU_KERNEL(conform_tma_3d)

// Three boxes to the tensor of a map, each `rows` below the last, through two buffers that take turns. The first begins
// at (x, y, z), and all may lie outside the tensor.
extern "C" __global__ void __launch_bounds__(THREADS)
    conform_tma_store(const __grid_constant__ TensorMap map,
                      const uint32_t* __restrict__ boxes /* [3][bytes / 4] */, int x, int y, int z, int rows,
                      int bytes) {
  DYN_SMEM(uint32_t, shared);  // [2][bytes / 4]
  for (int box = 0; box < 3; box++) {
    uint32_t* buffer = shared + box % 2 * bytes / 4;
    if (threadIdx.x == 0) {
      ptx::tma_store_wait_read<1>();
    }
    __syncthreads();
    for (int i = threadIdx.x; i < bytes / 4; i += THREADS) {
      buffer[i] = boxes[box * bytes / 4 + i];
    }
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::tma_store_3d(&map, x, y + box * rows, z, ptx::smem_u32(buffer));
      ptx::tma_store_commit();
    }
  }
  if (threadIdx.x == 0) {
    ptx::tma_store_wait_read<0>();
  }
}
EMU_KERNEL(conform_tma_store)

// Registers of elements that tell their own place, to rows in a mixed order.
extern "C" __global__ void __launch_bounds__(THREADS)
    conform_stmatrix(uint32_t* __restrict__ out /* [4 warps][32][4] */) {
  DYN_SMEM(uint32_t, rows);  // [4 warps][32][4]
  uint32_t* own = rows + warp_id() * 128;
  uint32_t pairs[4];
  for (int r = 0; r < 4; r++) {
    const uint32_t low = warp_id() * 256 + 2 * (r * 32 + lane_id());
    pairs[r] = low | (low + 1) << 16;
  }
  ptx::stmatrix_x4(ptx::smem_u32(own + lane_id() * 11 % 32 * 4), pairs);
  __syncwarp();
  for (int i = lane_id(); i < 128; i += 32) {
    out[warp_id() * 128 + i] = own[i];
  }
}
EMU_KERNEL(conform_stmatrix)

// Numbers handed from threads 0..31 to 32..127 and back, four times: two barriers, whose phases alternate.
extern "C" __global__ void __launch_bounds__(THREADS)
    conform_mbarrier(uint32_t* __restrict__ out /* [4][96] */) {
  struct Shared {
    uint64_t full;
    uint64_t empty;
    uint32_t numbers[32];
  };
  DYN_SMEM(Shared, shared);
  const uint32_t full = ptx::smem_u32(&shared->full);
  const uint32_t empty = ptx::smem_u32(&shared->empty);
  if (threadIdx.x == 0) {
    ptx::mbar_init(full, 32);
    ptx::mbar_init(empty, 96);
    ptx::mbar_fence_init();
  }
  __syncthreads();
  for (int round = 0; round < 4; round++) {
    if (threadIdx.x < 32) {
      ptx::mbar_wait(empty, round % 2 ^ 1);
      shared->numbers[threadIdx.x] = round * 100 + threadIdx.x;
      ptx::mbar_arrive(full);
    } else {
      ptx::mbar_wait(full, round % 2);
      out[round * 96 + threadIdx.x - 32] = shared->numbers[threadIdx.x % 32 ^ 1];
      ptx::mbar_arrive(empty);
    }
  }
}
EMU_KERNEL(conform_mbarrier)

// Each block of a pair loads half a tile for both, three times, into the same place: not before all threads of both have
// read what was there.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS)
    conform_multicast(const __grid_constant__ TensorMap map /* [3][2][16][64] */,
                      uint32_t* __restrict__ out /* [blocks][3][2 * HALF + 1]: the tile, the rank */) {
  constexpr int ROWS = 16, HALF = ROWS * 64 / 2;
  struct Shared {
    uint32_t tile[2][HALF];
    uint64_t full;
    uint64_t empty;
  };
  DYN_SMEM(Shared, shared);
  const uint32_t rank = ptx::cluster_rank();
  const uint32_t full = ptx::smem_u32(&shared->full);
  const uint32_t empty = ptx::smem_u32(&shared->empty);
  if (threadIdx.x == 0) {
    ptx::mbar_init(full, 1);
    ptx::mbar_init(empty, 2 * THREADS);
    ptx::mbar_fence_init();
  }
  ptx::cluster_sync();
  for (int round = 0; round < 3; round++) {
    if (threadIdx.x == 0) {
      ptx::mbar_wait(empty, round % 2 ^ 1);
      ptx::mbar_arrive_expect_tx(full, sizeof shared->tile);
      const uint32_t half = ptx::smem_u32(shared->tile[rank]);
      ptx::tma_load_2d_multicast(half, &map, 0, (round * 2 + rank) * ROWS, full, 3);
    }
    ptx::mbar_wait(full, round % 2);
    uint32_t* to = out + (blockIdx.x * 3 + round) * (2 * HALF + 1);
    for (int i = threadIdx.x; i < 2 * HALF; i += THREADS) {
      to[i] = shared->tile[i / HALF][i % HALF];
    }
    if (threadIdx.x == 0) {
      to[2 * HALF] = rank;
    }
    ptx::mbar_arrive_remote(empty, 0);
    ptx::mbar_arrive_remote(empty, 1);
  }
  ptx::cluster_sync();
}
EMU_KERNEL_IN_CLUSTERS(conform_multicast, 2)

extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n32(uint32_t* __restrict__ out /* [16][128] */) {
  multiply<32, 0, 0>(out);
}
EMU_KERNEL(conform_wgmma_n32)

extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n64(uint32_t* __restrict__ out /* [32][128] */) {
  multiply<64, 0, 0>(out);
}
EMU_KERNEL(conform_wgmma_n64)

extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n128(uint32_t* __restrict__ out /* [64][128] */) {
  multiply<128, 0, 0>(out);
}
EMU_KERNEL(conform_wgmma_n128)

extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n256(uint32_t* __restrict__ out /* [128][128] */) {
  multiply<256, 0, 0>(out);
}
EMU_KERNEL(conform_wgmma_n256)

extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n8_trans_a(uint32_t* __restrict__ out /* [4][128] */) {
  multiply<8, 1, 0>(out);
}
EMU_KERNEL(conform_wgmma_n8_trans_a)

// a from registers, as ldmatrix brings them from the same tile; b along N.
extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_from_registers(uint32_t* __restrict__ out /* [32][128] */) {
  multiply<64, 0, 1, true>(out);
}
EMU_KERNEL(conform_wgmma_from_registers)

// b along N
extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n128_trans_b(uint32_t* __restrict__ out /* [64][128] */) {
  multiply<128, 0, 1>(out);
}
EMU_KERNEL(conform_wgmma_n128_trans_b)

extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n256_trans(uint32_t* __restrict__ out /* [128][128] */) {
  multiply<256, 1, 1>(out);
}
EMU_KERNEL(conform_wgmma_n256_trans)

// a along M, b along N
extern "C" __global__ void __launch_bounds__(THREADS)
    conform_wgmma_n128_trans(uint32_t* __restrict__ out /* [64][128] */) {
  multiply<128, 1, 1>(out);
}
EMU_KERNEL(conform_wgmma_n128_trans)
