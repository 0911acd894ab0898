// Matrix products on the tensor cores of Hopper, c[m, n] = sum over k of a[m, k] b[n, k], for sm_90a: bf16
// operands, f32 sums, the operands along k or across it as in gemm.cuh.
//
// Split of the work: one block to a multiprocessor, which takes tile after tile of 128 rows of c. One thread
// of its first warpgroup keeps a ring of stages full: TMA brings 64 k of both operands as wgmma wants them,
// zeros for what lies outside, and counts its bytes off at the stage's barrier. The two other warpgroups each
// multiply 64 rows of the tile; one wgmma group is always under way, and a stage is given back once the next
// one's products have begun. As the loads of the next tile begin while a tile is left, the ring is full again
// when its products can start.
//
// Bound by the tensor cores: 64 k of a Wide tile are 4.2 MFLOP, 1024 cycles of a multiprocessor, for which
// 48 KB come from L2, 48 bytes a cycle; of a Narrow one 32 KB for 512 cycles, 64 bytes a cycle.
//
// Extents along rows must be multiples of 8 elements, all pointers of 16 bytes: TMA's strides are.
#pragma once
#include "gemm.cuh"
#include "hopper.cuh"

namespace hopper {

using gemm::Along;
using gemm::BLOCK_K;
using gemm::Corner;
using gemm::STEPS;

// 192 KB of ring each, of the 227 that a block can have.
template <int COLS, int STAGES_>
struct Tile {
  static constexpr int N = COLS, STAGES = STAGES_;
  static constexpr bool ANY_EXTENT = false;
};
using Wide = Tile<256, 4>;
using Narrow = Tile<128, 6>;

template <class Tile>
struct Ring {
  bf16 a[Tile::STAGES][BLOCK_ROWS * BLOCK_K];
  bf16 b[Tile::STAGES][Tile::N * BLOCK_K];
  bf16 ones[8 * BLOCK_K];  // eight columns of ones: a product with them is the sum of a row
  uint64_t full[Tile::STAGES], empty[Tile::STAGES];
};

// Whose turn it is in a ring: a stage, and the parity of its phase.
template <class Tile>
struct Turn {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == Tile::STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// A product: c is [m, n], the sum goes over k, of which a split takes `each`, a multiple of BLOCK_K.
struct Product {
  int m, n, k, each;
};

// One tile of one split: the sum from `from` to `to`.
struct Task {
  Corner at;
  int split, from, to;

  __device__ __forceinline__ int blocks() const { return (to - from + BLOCK_K - 1) / BLOCK_K; }
};

// Calls `work(task)` for all tasks of this block.
template <class Tile, class Work>
__device__ __forceinline__ void for_each_task(const Product& product, const Work& work) {
  const auto [m, n, k, each] = product;
  const int tiles = (m + BLOCK_ROWS - 1) / BLOCK_ROWS * ((n + Tile::N - 1) / Tile::N);
  const int splits = (k + each - 1) / each;
  for (int task = blockIdx.x; task < tiles * splits; task += gridDim.x) {
    const int split = task / tiles, from = split * each;
    work(Task{gemm::corner<BLOCK_ROWS, Tile::N>(task % tiles, m, n), split, from, min(k, from + each)});
  }
}

// --- The producer ------------------------------------------------------------------------------------------

// Begins to load ROWS rows along m or n from `mn` on, and BLOCK_K from k on. An operand that lies along k is
// one box [ROWS][64 k]; one that lies across it boxes [64 k][64] side by side.
template <Along ALONG, int ROWS>
__device__ __forceinline__ void load_operand(
    bf16* tile, const TensorMap* map, int mn, int k, uint32_t barrier) {
  if constexpr (ALONG == Along::K) {
    ptx::tma_load_2d(ptx::smem_u32(tile), map, k, mn, barrier);
  } else {
#pragma unroll
    for (int i = 0; i < ROWS / 64; i++) {
      ptx::tma_load_2d(ptx::smem_u32(tile) + i * SIXTY_FOUR_ROWS, map, mn + i * 64, k, barrier);
    }
  }
}

template <class Tile, Along ALONG_A, Along ALONG_B>
__device__ __forceinline__ void produce(
    Ring<Tile>* ring, const TensorMap* a, const TensorMap* b, const Product& product) {
  constexpr uint32_t BYTES = sizeof(ring->a[0]) + sizeof(ring->b[0]);
  ptx::tma_prefetch_desc(a);
  ptx::tma_prefetch_desc(b);
  Turn<Tile> turn;
  for_each_task<Tile>(product, [&](const Task& task) {
    for (int k = task.from; k < task.to; k += BLOCK_K) {
      const uint32_t full = ptx::smem_u32(&ring->full[turn.stage]);
      ptx::mbar_wait(ptx::smem_u32(&ring->empty[turn.stage]), turn.parity ^ 1);
      ptx::mbar_arrive_expect_tx(full, BYTES);
      load_operand<ALONG_A, BLOCK_ROWS>(ring->a[turn.stage], a, task.at.m, k, full);
      load_operand<ALONG_B, Tile::N>(ring->b[turn.stage], b, task.at.n, k, full);
      turn.next();
    }
  });
}

// --- The consumers -----------------------------------------------------------------------------------------

// The products of a warpgroup's rows, as wgmma leaves them: see ptx::wgmma_bf16.
template <class Tile>
struct Sums {
  float sum[Tile::N / 2];
  float row_sum[4];  // of a's rows, the same in each column
};

template <Along ALONG>
__device__ __forceinline__ uint64_t descriptor(uint32_t tile, int step) {
  return ALONG == Along::K ? along(tile, step) : across(tile, step);
}

template <class Tile>
__device__ __forceinline__ void give_back(Ring<Tile>* ring, int stage) {
  if (threadIdx.x % WARPGROUP == 0) ptx::mbar_arrive(ptx::smem_u32(&ring->empty[stage]));
}

// The sums over `blocks` blocks of k.
template <class Tile, Along ALONG_A, Along ALONG_B, bool ROW_SUMS>
__device__ __forceinline__ void multiply(Sums<Tile>& c, Ring<Tile>* ring, Turn<Tile>& turn, int blocks) {
  constexpr int ACROSS_A = ALONG_A == Along::MN, ACROSS_B = ALONG_B == Along::MN;
  const uint32_t ones = ptx::smem_u32(ring->ones);
  int before = 0;
  for (int block = 0; block < blocks; block++) {
    ptx::mbar_wait(ptx::smem_u32(&ring->full[turn.stage]), turn.parity);
    const uint32_t a = ptx::smem_u32(ring->a[turn.stage]) + part() * SIXTY_FOUR_ROWS;
    const uint32_t b = ptx::smem_u32(ring->b[turn.stage]);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      // The first product begins the sum: nothing has to be set to zero.
      const int add = block > 0 || step > 0;
      const uint64_t rows = descriptor<ALONG_A>(a, step);
      ptx::wgmma_bf16<Tile::N, ACROSS_A, ACROSS_B>(c.sum, rows, descriptor<ALONG_B>(b, step), add);
      if constexpr (ROW_SUMS) {
        ptx::wgmma_bf16<8, ACROSS_A, 0>(c.row_sum, rows, descriptor<Along::K>(ones, step), add);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (block > 0) give_back(ring, before);
    before = turn.stage;
    turn.next();
  }
  ptx::wgmma_wait<0>();
  give_back(ring, before);
}

// Calls `leave(row, col, values)` for all of the warpgroup's rows that are inside of [m, n]: eight columns
// from a multiple of 8 on.
template <class Tile, class Leave>
__device__ __forceinline__ void for_each_eight(
    const Sums<Tile>& c, Corner at, int m, int n, const Leave& leave) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = at.m + warp_row() + half * 8 + lane_id() / 4;
#pragma unroll
    for (int group = 0; group < Tile::N / 32; group++) {
      const int col = at.n + group * 32 + lane_id() % 4 * 8;
      float pairs[4][2], values[8];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        pairs[j][0] = c.sum[(group * 4 + j) * 4 + half * 2];
        pairs[j][1] = c.sum[(group * 4 + j) * 4 + half * 2 + 1];
      }
      gemm::gather_columns(values, pairs);
      if (row < m && col < n) leave(row, col, values);
    }
  }
}

// --- The product -------------------------------------------------------------------------------------------

// Computes the product of the operands that the maps describe, and calls `leave(task, sums)` in the consumers
// for each of the block's tiles; with ROW_SUMS those of the first column of tiles have the sums of a's rows.
template <class Tile, Along ALONG_A, Along ALONG_B, bool ROW_SUMS, class Leave>
__device__ __forceinline__ void multiply_all(
    const TensorMap& a, const TensorMap& b, const Product& product, const Leave& leave) {
  DYN_SMEM(Ring<Tile>, ring);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int stage = 0; stage < Tile::STAGES; stage++) {
      ptx::mbar_init(ptx::smem_u32(&ring->full[stage]), 1);
      ptx::mbar_init(ptx::smem_u32(&ring->empty[stage]), CONSUMERS);
    }
    ptx::mbar_fence_init();
  }
  if constexpr (ROW_SUMS) {
    for (int i = threadIdx.x; i < 8 * BLOCK_K; i += THREADS) ring->ones[i] = __float2bfloat16_rn(1.0f);
    ptx::fence_proxy_async();
  }
  __syncthreads();

  divide_work(
      [&] { produce<Tile, ALONG_A, ALONG_B>(ring, &a, &b, product); },
      [&] {
        Turn<Tile> turn;
        for_each_task<Tile>(product, [&](const Task& task) {
          Sums<Tile> c;
          // One column of tiles is enough to have the sums of all rows.
          if (ROW_SUMS && task.at.n == 0) {
            multiply<Tile, ALONG_A, ALONG_B, true>(c, ring, turn, task.blocks());
          } else {
            multiply<Tile, ALONG_A, ALONG_B, false>(c, ring, turn, task.blocks());
          }
          leave(task, c);
        });
      });
}

}  // namespace hopper
