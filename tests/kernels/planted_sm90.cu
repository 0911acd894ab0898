// Kernels with one mistake each, made where `bug` is not 0, in what sm_90 adds; see planted.cu.
#include "ptx.cuh"

constexpr int THREADS = 128;
constexpr int TILE = 64;  // rows and columns
constexpr uint32_t TILE_BYTES = TILE * TILE * sizeof(__nv_bfloat16);
constexpr uint32_t EIGHT_ROWS = 8 * TILE * sizeof(__nv_bfloat16);

namespace {

// d[64][64] += a[64][64] * b[64][64]^T, of tiles with 128-byte swizzle.
__device__ __forceinline__ void multiply(float (&d)[32], uint32_t a, uint32_t b, uint32_t stride) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < TILE; k += 16) {
    const uint32_t at = k * sizeof(__nv_bfloat16);
    ptx::wgmma_bf16<64>(d, ptx::desc_sw128(a + at, 16, stride), ptx::desc_sw128(b + at, 16, EIGHT_ROWS), 1);
  }
  ptx::wgmma_commit();
}

__device__ __forceinline__ void store(float* __restrict__ c /* [64][64] of each warpgroup */, const float (&d)[32]) {
#pragma unroll
  for (int r = 0; r < 32; r++) {
    const int row = warp_id() * 16 + lane_id() / 4 + r / 2 % 2 * 8;
    const int column = r / 4 * 8 + lane_id() % 4 * 2 + r % 2;
    c[row * TILE + column] = d[r];
  }
}

}  // namespace

// c = a * b^T, of tiles that threads write to shared memory.
// Bug 1: the tensor cores may not see them (no proxy fence). Bug 2: they may not be written yet (no barrier).
// Bug 3: the descriptor of `a` tells half the distance between eight rows and the next eight.
struct Plain {
  __nv_bfloat16 a[TILE * TILE];
  __nv_bfloat16 b[TILE * TILE];
};

extern "C" __global__ void __launch_bounds__(THREADS)
    planted_product(const __nv_bfloat16* __restrict__ a /* [64][64] */,
                    const __nv_bfloat16* __restrict__ b /* [64][64] */, float* __restrict__ c /* [64][64] */,
                    int bug) {
  DYN_SMEM(Plain, shared);
  for (int chunk = threadIdx.x; chunk < TILE * TILE / 8; chunk += THREADS) {
    const int row = chunk / 8;
    const int at = row * TILE + (chunk % 8 ^ row % 8) * 8;
    *reinterpret_cast<uint4*>(shared->a + at) = reinterpret_cast<const uint4*>(a)[chunk];
    *reinterpret_cast<uint4*>(shared->b + at) = reinterpret_cast<const uint4*>(b)[chunk];
  }
  if (bug != 1) {
    ptx::fence_proxy_async();
  }
  if (bug != 2) {
    __syncthreads();
  }
  float d[32] = {};
  multiply(d, ptx::smem_u32(shared->a), ptx::smem_u32(shared->b), bug == 3 ? EIGHT_ROWS / 2 : EIGHT_ROWS);
  ptx::wgmma_wait<0>();
  store(c, d);
}
EMU_KERNEL(planted_product)

// c = sum over t of a[t] * b[t]^T, of tiles that TMA loads into a ring of two stages; one thread of a fifth
// warp issues the loads. Bug 1: it does not wait until a stage is free. Bug 2: a stage is given free while
// the tensor cores read it.
constexpr int STAGES = 2;

struct __align__(1024) Ring {
  __nv_bfloat16 a[STAGES][TILE * TILE];
  __nv_bfloat16 b[STAGES][TILE * TILE];
  uint64_t full[STAGES];
  uint64_t empty[STAGES];
};

extern "C" __global__ void __launch_bounds__(THREADS + 32)
    planted_ring(const __grid_constant__ TensorMap a /* [tiles][64][64] */,
                 const __grid_constant__ TensorMap b /* [tiles][64][64] */,
                 float* __restrict__ c /* [64][64] */, int tiles, int bug) {
  DYN_SMEM(Ring, ring);
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      ptx::mbar_init(ptx::smem_u32(&ring->full[s]), 1);
      ptx::mbar_init(ptx::smem_u32(&ring->empty[s]), THREADS);
    }
    ptx::mbar_fence_init();
  }
  __syncthreads();
  if (threadIdx.x >= THREADS) {
    for (int t = 0; t < tiles && threadIdx.x == THREADS; t++) {
      const int s = t % STAGES;
      const uint32_t full = ptx::smem_u32(&ring->full[s]);
      if (bug != 1) {
        ptx::mbar_wait(ptx::smem_u32(&ring->empty[s]), t / STAGES % 2 ^ 1);
      }
      ptx::mbar_arrive_expect_tx(full, 2 * TILE_BYTES);
      ptx::tma_load_3d(ptx::smem_u32(ring->a[s]), &a, 0, 0, t, full);
      ptx::tma_load_3d(ptx::smem_u32(ring->b[s]), &b, 0, 0, t, full);
    }
    return;
  }
  float d[32] = {};
  for (int t = 0; t < tiles; t++) {
    const int s = t % STAGES;
    ptx::mbar_wait(ptx::smem_u32(&ring->full[s]), t / STAGES % 2);
    multiply(d, ptx::smem_u32(ring->a[s]), ptx::smem_u32(ring->b[s]), EIGHT_ROWS);
    if (bug != 2) {
      ptx::wgmma_wait<0>();
    }
    ptx::mbar_arrive(ptx::smem_u32(&ring->empty[s]));
  }
  ptx::wgmma_wait<0>();
  store(c, d);
}
EMU_KERNEL(planted_ring)

// planted_ring for two warpgroups that take three tiles in turn, c = the sums of each one's. Bug 1: without turns,
// one that is ahead takes a stage for full that has been filled an even number of times less.
constexpr int TURN = 3;

extern "C" __global__ void __launch_bounds__(2 * THREADS + 32)
    planted_turns(const __grid_constant__ TensorMap a /* [tiles][64][64] */,
                  const __grid_constant__ TensorMap b /* [tiles][64][64] */,
                  float* __restrict__ c /* [2][64][64] */, int tiles, int bug) {
  DYN_SMEM(Ring, ring);
  const int group = threadIdx.x / THREADS;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      ptx::mbar_init(ptx::smem_u32(&ring->full[s]), 1);
      ptx::mbar_init(ptx::smem_u32(&ring->empty[s]), THREADS);
    }
    ptx::mbar_fence_init();
  }
  __syncthreads();
  if (group == 2) {
    for (int t = 0; t < tiles && threadIdx.x == 2 * THREADS; t++) {
      const int s = t % STAGES;
      const uint32_t full = ptx::smem_u32(&ring->full[s]);
      ptx::mbar_wait(ptx::smem_u32(&ring->empty[s]), t / STAGES % 2 ^ 1);
      ptx::mbar_arrive_expect_tx(full, 2 * TILE_BYTES);
      ptx::tma_load_3d(ptx::smem_u32(ring->a[s]), &a, 0, 0, t, full);
      ptx::tma_load_3d(ptx::smem_u32(ring->b[s]), &b, 0, 0, t, full);
    }
    return;
  }
  const auto await_turn = [&] {
    if (bug != 1) {
      ptx::bar_sync(1 + group, 2 * THREADS);
    }
  };
  const auto pass_turn = [&] {
    if (bug != 1) {
      ptx::bar_arrive(2 - group, 2 * THREADS);
    }
  };
  float d[32] = {};
  int whose = 0;
  if (group == 1) {
    pass_turn();
  }
  for (int first = 0; first < tiles; first += TURN) {
    if (whose == group) {
      await_turn();
      for (int t = first; t < min(first + TURN, tiles); t++) {
        const int s = t % STAGES;
        ptx::mbar_wait(ptx::smem_u32(&ring->full[s]), t / STAGES % 2);
        multiply(d, ptx::smem_u32(ring->a[s]), ptx::smem_u32(ring->b[s]), EIGHT_ROWS);
        ptx::wgmma_wait<0>();
        ptx::mbar_arrive(ptx::smem_u32(&ring->empty[s]));
      }
      pass_turn();
    }
    whose ^= 1;
  }
  if (whose == group) {
    await_turn();
  }
  store(c, d);
}
EMU_KERNEL(planted_turns)

// y = x, tile by tile through a buffer that TMA stores from, and z = the last tile of y. Bug 1: TMA may not see what
// the threads have written (no proxy fence). Bug 2: the buffer is written again before it was read. Bug 3: y is read
// before it is written. Bug 4: the block ends before the buffer was read.
extern "C" __global__ void __launch_bounds__(THREADS)
    planted_store(const __grid_constant__ TensorMap y_map /* [tiles * 64][64] */,
                  const uint4* __restrict__ x /* [tiles][64][8] */, const uint4* y, uint4* __restrict__ z,
                  int tiles, int bug) {
  constexpr int CHUNKS = TILE * TILE / 8;
  DYN_SMEM(uint4, buffer);
  for (int t = 0; t < tiles; t++) {
    if (threadIdx.x == 0 && bug != 2) {
      ptx::tma_store_wait_read<0>();
    }
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNKS; i += THREADS) {
      buffer[i ^ i / 8 % 8] = x[t * CHUNKS + i];
    }
    if (bug != 1) {
      ptx::fence_proxy_async();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::tma_store_3d(&y_map, 0, t * TILE, 0, ptx::smem_u32(buffer));
      ptx::tma_store_commit();
    }
  }
  if (bug == 4) {
    return;
  }
  if (threadIdx.x == 0) {
    ptx::tma_store_wait_read<0>();
    if (bug != 3) {
      ptx::tma_store_wait<0>();
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < CHUNKS; i += THREADS) {
    z[i] = y[(tiles - 1) * CHUNKS + i];
  }
}
EMU_KERNEL(planted_store)

// planted_ring for two blocks that multiply the same a by a b each: half of each tile of a is loaded by either block
// for both. Bug 1: a stage is given back to the own block alone. Bug 2: a block ends while the other still gives stages
// back to it. Bug 3: a block loads into the other before its barriers are there. Bug 4: one takes no last tile, and
// ends, while the other loads into it.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(THREADS + 32)
    planted_cluster(const __grid_constant__ TensorMap a /* [tiles * 64][64] */,
                    const __grid_constant__ TensorMap b /* [2][tiles * 64][64] */,
                    float* __restrict__ c /* [2][64][64] */, int tiles, int bug) {
  DYN_SMEM(Ring, ring);
  const uint32_t rank = ptx::cluster_rank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      ptx::mbar_init(ptx::smem_u32(&ring->full[s]), 1);
      ptx::mbar_init(ptx::smem_u32(&ring->empty[s]), bug == 1 ? THREADS : 2 * THREADS);
    }
    ptx::mbar_fence_init();
  }
  if (bug == 3) {
    __syncthreads();
  } else {
    ptx::cluster_sync();
  }
  if (bug == 4) {
    tiles -= rank;
  }
  if (threadIdx.x >= THREADS) {
    for (int t = 0; t < tiles && threadIdx.x == THREADS; t++) {
      const int s = t % STAGES;
      const uint32_t full = ptx::smem_u32(&ring->full[s]);
      ptx::mbar_wait(ptx::smem_u32(&ring->empty[s]), t / STAGES % 2 ^ 1);
      ptx::mbar_arrive_expect_tx(full, 2 * TILE_BYTES);
      ptx::tma_load_2d_multicast(ptx::smem_u32(ring->a[s]) + rank * TILE_BYTES / 2, &a, 0,
                                 t * TILE + rank * TILE / 2, full, 3);
      ptx::tma_load_2d(ptx::smem_u32(ring->b[s]), &b, 0, (rank * tiles + t) * TILE, full);
    }
  } else {
    float d[32] = {};
    for (int t = 0; t < tiles; t++) {
      const int s = t % STAGES;
      const uint32_t empty = ptx::smem_u32(&ring->empty[s]);
      ptx::mbar_wait(ptx::smem_u32(&ring->full[s]), t / STAGES % 2);
      multiply(d, ptx::smem_u32(ring->a[s]), ptx::smem_u32(ring->b[s]), EIGHT_ROWS);
      ptx::wgmma_wait<0>();
      ptx::mbar_arrive_remote(empty, rank);
      if (bug != 1) {
        ptx::mbar_arrive_remote(empty, rank ^ 1);
      }
    }
    store(c + rank * TILE * TILE, d);
  }
  if (bug != 2 && bug != 4) {
    ptx::cluster_sync();
  }
}
EMU_KERNEL_IN_CLUSTERS(planted_cluster, 2)
