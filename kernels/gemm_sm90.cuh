// Matrix products on the tensor cores of Hopper, c[m, n] = sum over k of a[m, k] b[n, k], for sm_90a: bf16
// operands, f32 sums, the operands along k or across it as in gemm.cuh.
//
// Split of the work: one block to a multiprocessor, which takes tile after tile of 128 rows of c. One thread
// of its first warpgroup keeps a ring of stages full: TMA brings 64 k of both operands as wgmma wants them,
// zeros for what lies outside, and counts its bytes off at the stage's barrier. Two blocks, a cluster, take
// tiles one below the other: each loads half of b for both. The two other warpgroups of a block multiply,
// either together, 64 rows of each tile each, or in turn, each every other tile ("ping-pong"): then the tensor
// cores work on one's tile while the other leaves its own. One wgmma group of a warpgroup is always under way,
// and a stage is given back once the next one's products have begun. The loads of the next tile begin while a
// tile is left, so that the ring is full again when its products can start. What is left in bf16 goes through
// shared memory, by stmatrix and a TMA store that reads it while the next products begin; what a tile needs
// besides its operands comes to the same place while it is multiplied.
//
// Bound, for 64 k of a Wide tile, by the tensor cores, 1024 cycles of a multiprocessor for 4.2 MFLOP, and as
// much by shared memory: TMA writes 48 KB and wgmma reads 80 KB, 128 bytes a cycle; 32 KB of it come from L2,
// 32 bytes a cycle. Of the other tiles by shared memory: 32 KB and 48 KB are 640 cycles, for products of 512;
// 24 KB come from L2, 38 bytes a cycle. (A multiprocessor's share of L2 is about 46.) A tile that is left is
// written to shared memory and read again, and so is one that is needed besides: 128 KB for a Wide one.
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

constexpr int CLUSTER = 2;

enum class Share { Together, InTurn };

// A warpgroup multiplies PARTS times 64 rows of a tile. What it leaves in bf16 are BOXES of 64 rows and 64 columns, one
// for each of its warps; none where it leaves f32, from registers, and there is room for one more stage.
template <int COLS, int STAGES_, Share SHARE, int BOXES_>
struct Tile {
  static constexpr int N = COLS, STAGES = STAGES_, BOXES = BOXES_;
  static constexpr bool IN_TURN = SHARE == Share::InTurn;
  static constexpr int PARTS = IN_TURN ? BLOCK_ROWS / 64 : 1;

  // Which 64 rows of the tile part `i` is.
  __device__ __forceinline__ static int part_of_tile(int i) { return IN_TURN ? i : part(); }
  // The first of the two rows of part `i`, eight apart, of which a thread has sums.
  __device__ __forceinline__ static int row(int i) {
    return part_of_tile(i) * 64 + warp_id() % 4 * 16 + lane_id() / 4;
  }
};
using Wide = Tile<256, 3, Share::Together, 4>;
using PingPong = Tile<128, 5, Share::InTurn, 4>;
using WideReal = Tile<256, 4, Share::Together, 0>;
using NarrowReal = Tile<128, 6, Share::Together, 0>;

constexpr int BOX = 64 * 64;

template <class Tile>
struct Shared {
  bf16 a[Tile::STAGES][BLOCK_ROWS * BLOCK_K];  // the ring
  bf16 b[Tile::STAGES][Tile::N * BLOCK_K];
  bf16 boxes[CONSUMERS][Tile::BOXES][BOX];  // of each warpgroup: a part's columns, then the next part's
  bf16 ones[8 * BLOCK_K];  // eight columns of ones: a product with them is the sum of a row
  uint64_t full[Tile::STAGES], empty[Tile::STAGES];
  uint64_t boxes_full[CONSUMERS];
};

// A place in a ring: a stage, and the parity of its phase.
template <class Tile>
struct Place {
  int stage = 0;
  uint32_t parity = 0;

  __device__ __forceinline__ void next() {
    if (++stage == Tile::STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
  __device__ __forceinline__ void skip(int stages) {
    stage += stages;
    parity ^= stage / Tile::STAGES % 2;
    stage %= Tile::STAGES;
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

// Division of numbers below 2^32 by a number that stays the same: the processor has none, and what stands
// for it takes some 150 cycles, while nothing is multiplied.
struct Divisor {
  uint32_t by, reciprocal;

  __device__ __forceinline__ explicit Divisor(int by) : by(max(by, 1)), reciprocal(0xFFFFFFFFu / max(by, 1)) {}

  // Makes `left` the remainder. The reciprocal is at most 1 below 2^32 / by, the first quotient at most 1 too small.
  __device__ __forceinline__ int quotient(uint32_t x, int& left) const {
    uint32_t q = __umulhi(x, reciprocal), rest = x - q * by;
    if (rest >= by) {
      q++;
      rest -= by;
    }
    left = rest;
    return q;
  }
};

// Calls `work(task)` for all tasks of this block. The blocks of a cluster have tasks of the same columns and
// the same split at the same time; where the last rows are the first block's, the second has none of c. Tiles follow
// each other as those of gemm.cuh do, 16 rows of them before the next column.
template <class Tile, class Work>
__device__ __forceinline__ void for_each_task(const Product& product, const Work& work) {
  constexpr int ROWS = CLUSTER * BLOCK_ROWS, GROUP = 16;
  const auto [m, n, k, each] = product;
  const int rows = (m + ROWS - 1) / ROWS, cols = (n + Tile::N - 1) / Tile::N;
  const int splits = (k + each - 1) / each, groups = rows / GROUP;
  const Divisor tiles(rows * cols), group_tiles(GROUP * cols), last(rows % GROUP);
  for (int task = blockIdx.x / CLUSTER; task < rows * cols * splits; task += gridDim.x / CLUSTER) {
    int tile, within, row;
    const int split = tiles.quotient(task, tile), from = split * each;
    const int group = group_tiles.quotient(tile, within);
    int col = last.quotient(within, row);
    if (group < groups) {
      col = within / GROUP;
      row = within % GROUP;
    }
    const int block = CLUSTER * (group * GROUP + row) + ptx::cluster_rank();
    work(Task{{block * BLOCK_ROWS, col * Tile::N}, split, from, min(k, from + each)});
  }
}

// --- The producer ------------------------------------------------------------------------------------------

// Begins to load ROWS rows along m or n from `mn` on, and BLOCK_K from k on, by `load(to, x, y)`. An operand
// that lies along k is one box [ROWS][64 k]; one that lies across it boxes [64 k][64] side by side.
template <Along ALONG, int ROWS, class Load>
__device__ __forceinline__ void load_operand(uint32_t tile, int mn, int k, const Load& load) {
  if constexpr (ALONG == Along::K) {
    load(tile, k, mn);
  } else {
#pragma unroll
    for (int i = 0; i < ROWS / 64; i++) load(tile + i * SIXTY_FOUR_ROWS, mn + i * 64, k);
  }
}

template <class Tile, Along ALONG_A, Along ALONG_B>
__device__ __forceinline__ void produce(
    Shared<Tile>* shared, const TensorMap* a, const TensorMap* b, const Product& product) {
  constexpr uint32_t BYTES = sizeof(shared->a[0]) + sizeof(shared->b[0]);
  constexpr int SHARE = Tile::N / CLUSTER, EVERYONE = (1 << CLUSTER) - 1;
  const int share = ptx::cluster_rank() * SHARE;  // of b, which this block loads for all
  ptx::tma_prefetch_desc(a);
  ptx::tma_prefetch_desc(b);
  Place<Tile> place;
  for_each_task<Tile>(product, [&](const Task& task) {
    for (int k = task.from; k < task.to; k += BLOCK_K) {
      const uint32_t full = ptx::smem_u32(&shared->full[place.stage]);
      ptx::mbar_wait(ptx::smem_u32(&shared->empty[place.stage]), place.parity ^ 1);
      ptx::mbar_arrive_expect_tx(full, BYTES);
      load_operand<ALONG_A, BLOCK_ROWS>(
          ptx::smem_u32(shared->a[place.stage]), task.at.m, k,
          [&](uint32_t to, int x, int y) { ptx::tma_load_2d(to, a, x, y, full); });
      load_operand<ALONG_B, SHARE>(
          ptx::smem_u32(shared->b[place.stage] + share * BLOCK_K), task.at.n + share, k,
          [&](uint32_t to, int x, int y) { ptx::tma_load_2d_multicast(to, b, x, y, full, EVERYONE); });
      place.next();
    }
  });
}

// --- The consumers -----------------------------------------------------------------------------------------

// The products of a warpgroup's rows, 64 by 64, as wgmma leaves them: see ptx::wgmma_bf16.
template <class Tile>
struct Sums {
  float sum[Tile::PARTS][Tile::N / 2];
  float row_sum[Tile::PARTS][4];  // of a's rows, the same in each column
};

template <Along ALONG>
__device__ __forceinline__ uint64_t descriptor(uint32_t tile, int step) {
  return ALONG == Along::K ? along(tile, step) : across(tile, step);
}

// To the producers of all blocks: each loads to this stage of all.
template <class Tile>
__device__ __forceinline__ void give_back(Shared<Tile>* shared, int stage) {
  const int block = threadIdx.x % WARPGROUP;
  if (block < CLUSTER) ptx::mbar_arrive_remote(ptx::smem_u32(&shared->empty[stage]), block);
}

// Where warpgroups multiply in turn: waits for this one's, and gives it to the other. A barrier's parity tells
// one phase from the next alone: none may wait for a stage before all that come before it have been filled.
__device__ __forceinline__ void await_turn() {
  ptx::bar_sync(1 + part(), CONSUMERS * WARPGROUP);
}

__device__ __forceinline__ void pass_turn() {
  ptx::bar_arrive(2 - part(), CONSUMERS * WARPGROUP);
}

// The sums over `blocks` blocks of k; calls `meanwhile` once the first of them is under way.
template <class Tile, Along ALONG_A, Along ALONG_B, bool ROW_SUMS, class Meanwhile>
__device__ __forceinline__ void multiply(
    Sums<Tile>& c, Shared<Tile>* shared, Place<Tile>& place, int blocks, const Meanwhile& meanwhile) {
  constexpr int ACROSS_A = ALONG_A == Along::MN, ACROSS_B = ALONG_B == Along::MN;
  const uint32_t ones = ptx::smem_u32(shared->ones);
  const int late = min(2, blocks - 1);  // what was stored has been read by then
  int before = 0;
  for (int block = 0; block < blocks; block++) {
    ptx::mbar_wait(ptx::smem_u32(&shared->full[place.stage]), place.parity);
    const uint32_t a = ptx::smem_u32(shared->a[place.stage]), b = ptx::smem_u32(shared->b[place.stage]);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      // The first product begins the sum: nothing has to be set to zero.
      const int add = block > 0 || step > 0;
#pragma unroll
      for (int i = 0; i < Tile::PARTS; i++) {
        const uint64_t rows = descriptor<ALONG_A>(a + Tile::part_of_tile(i) * SIXTY_FOUR_ROWS, step);
        ptx::wgmma_bf16<Tile::N, ACROSS_A, ACROSS_B>(c.sum[i], rows, descriptor<ALONG_B>(b, step), add);
        if constexpr (ROW_SUMS) {
          ptx::wgmma_bf16<8, ACROSS_A, 0>(c.row_sum[i], rows, descriptor<Along::K>(ones, step), add);
        }
      }
    }
    ptx::wgmma_commit();
    if (block == late) meanwhile();
    ptx::wgmma_wait<1>();
    if (block > 0) give_back(shared, before);
    before = place.stage;
    place.next();
  }
  if constexpr (Tile::IN_TURN) pass_turn();
  ptx::wgmma_wait<0>();
  give_back(shared, before);
}

// --- From the accumulators to memory -----------------------------------------------------------------------

// Two neighbours in a row of sums: their part, in which half of a thread's rows, and in which eight columns.
struct Two {
  int part, half, eight;
};

// A warpgroup's rows of a tile on their way to a tensor [m, n], or from one: boxes of 64 rows and 64 columns,
// zeros for what lies outside. The maps have three axes, as those of several matrices do, the last of extent 1.
template <class Tile>
struct Boxes {
  bf16 (*boxes)[BOX];
  uint32_t full;  // the barrier of what comes
  uint32_t parity = 0;

  __device__ __forceinline__ explicit Boxes(Shared<Tile>* shared)
      : boxes(shared->boxes[part()]), full(ptx::smem_u32(&shared->boxes_full[part()])) {}

  // Begins to load from the tensor.
  __device__ __forceinline__ void begin_load(const TensorMap& from, Corner at) const {
    if (leads()) {
      ptx::tma_store_wait_read<0>();
      ptx::mbar_arrive_expect_tx(full, sizeof(boxes[0]));
      with_box(at, [&](uint32_t box, int row, int col) { ptx::tma_load_3d(box, &from, col, row, 0, full); });
    }
    __syncwarp();
  }

  // Waits for what was begun to load.
  __device__ __forceinline__ void await_loaded() {
    ptx::mbar_wait(full, parity);
    parity ^= 1;
  }

  // Waits until what was begun to store has been read.
  __device__ __forceinline__ void await_stored() const {
    if (leads()) ptx::tma_store_wait_read<0>();
    sync();
  }

  // Calls `make(two, sums)` for each two neighbours, and begins to store the sums to the tensor, rounded.
  template <class Make>
  __device__ __forceinline__ void store(Sums<Tile>& c, const TensorMap& to, Corner at, const Make& make) const {
    write<false>(c, [&](const Two& two, float* sums, const float*) { make(two, sums); });
    begin_store(to, at);
  }

  // The same with `make(two, sums, there)`, where `there` is what lies in the boxes.
  template <class Make>
  __device__ __forceinline__ void store_over(
      Sums<Tile>& c, const TensorMap& to, Corner at, const Make& make) const {
    write<true>(c, make);
    begin_store(to, at);
  }

 private:
  static constexpr int OF_PART = Tile::N / 64;

  // A thread of each warp: it loads and stores the warp's box.
  __device__ __forceinline__ static bool leads() { return lane_id() == 0; }

  // All of the warpgroup; barriers 1 and 2 are for turns.
  __device__ __forceinline__ static void sync() { ptx::bar_sync(1 + CONSUMERS + part(), WARPGROUP); }

  template <class Work>
  __device__ __forceinline__ void with_box(Corner at, const Work& work) const {
    static_assert(Tile::PARTS * OF_PART == Tile::BOXES && Tile::BOXES == WARPGROUP / 32, "a box a warp");
    const int box = warp_id() % 4;
    const int row = Tile::IN_TURN ? box / OF_PART : part();
    work(ptx::smem_u32(boxes[box]), at.m + row * 64, at.n + box % OF_PART * 64);
  }

  // A matrix of stmatrix is 8 columns of a warp's first 8 rows or of the 8 below; four are 16 columns. A lane has
  // two neighbours of each.
  template <bool READ, class Make>
  __device__ __forceinline__ void write(Sums<Tile>& c, const Make& make) const {
    const int row = warp_id() % 4 * 16 + lane_id() % 16;
#pragma unroll
    for (int sixteen = 0; sixteen < Tile::PARTS * Tile::N / 16; sixteen++) {
      const int part = sixteen * 16 / Tile::N, col = sixteen * 16 % Tile::N, chunk = sixteen % 4 * 2 + lane_id() / 16;
      const uint32_t place = ptx::smem_u32(boxes[sixteen / 4] + tile_at<64>(row, chunk));
      uint32_t pairs[4] = {};
      if constexpr (READ) ptx::ldmatrix_x4(pairs, place);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float* sums = c.sum[part] + col / 2 + i * 2;
        float there[2];
        unpack(pairs[i], there[0], there[1]);
        make(Two{part, i % 2, col / 8 + i / 2}, sums, there);
        pairs[i] = pack(sums[0], sums[1]);
      }
      ptx::stmatrix_x4(place, pairs);
    }
  }

  __device__ __forceinline__ void begin_store(const TensorMap& to, Corner at) const {
    ptx::fence_proxy_async();
    sync();
    if (leads()) {
      with_box(at, [&](uint32_t box, int row, int col) { ptx::tma_store_3d(&to, col, row, 0, box); });
      ptx::tma_store_commit();
    }
    __syncwarp();
  }
};

// Calls `work(row, col, sums)` for each two neighbours in a row of [m, n], `col` being the first one's column.
template <class Tile, class Work>
__device__ __forceinline__ void for_each_two(const Sums<Tile>& c, Corner at, int m, int n, const Work& work) {
#pragma unroll
  for (int i = 0; i < Tile::PARTS * 2; i++) {
    const int part = i / 2, half = i % 2, row = at.m + Tile::row(part) + half * 8;
#pragma unroll
    for (int eight = 0; eight < Tile::N / 8; eight++) {
      const int col = at.n + eight * 8 + lane_id() % 4 * 2, first = eight * 4 + half * 2;
      if (row < m && col < n) work(row, col, make_float2(c.sum[part][first], c.sum[part][first + 1]));
    }
  }
}

// --- The product -------------------------------------------------------------------------------------------

// Computes the product of the operands that the maps describe. The consumers call `leaving.begin(boxes, task,
// beside)` once the products of a tile are under way and `leaving.end(boxes, task, beside, sums)` after them; with
// ROW_SUMS those of the first column of tiles have the sums of a's rows.
template <class Tile, Along ALONG_A, Along ALONG_B, bool ROW_SUMS, class Leaving>
__device__ __forceinline__ void multiply_all(
    const TensorMap& a, const TensorMap& b, const Product& product, const Leaving& leaving) {
  DYN_SMEM(Shared<Tile>, shared);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int stage = 0; stage < Tile::STAGES; stage++) {
      ptx::mbar_init(ptx::smem_u32(&shared->full[stage]), 1);
      ptx::mbar_init(ptx::smem_u32(&shared->empty[stage]), CLUSTER * (Tile::IN_TURN ? 1 : CONSUMERS));
    }
#pragma unroll
    for (int i = 0; i < CONSUMERS; i++) ptx::mbar_init(ptx::smem_u32(&shared->boxes_full[i]), WARPGROUP / 32);
    ptx::mbar_fence_init();
  }
  if constexpr (ROW_SUMS) {
    for (int i = threadIdx.x; i < 8 * BLOCK_K; i += THREADS) shared->ones[i] = __float2bfloat16_rn(1.0f);
    ptx::fence_proxy_async();
  }
  ptx::cluster_sync();

  divide_work(
      [&] { produce<Tile, ALONG_A, ALONG_B>(shared, &a, &b, product); },
      [&] {
        Place<Tile> place;
        Boxes<Tile> boxes(shared);
        int whose = 0;  // the task of which warpgroup
        if (Tile::IN_TURN && part() == 1) pass_turn();
        for_each_task<Tile>(product, [&](const Task& task) {
          const bool others = Tile::IN_TURN && whose != part();
          whose ^= 1;
          if (others) return place.skip(task.blocks());
          if constexpr (Tile::IN_TURN) await_turn();
          Sums<Tile> c;
          typename Leaving::template Beside<Tile> beside;
          const auto begin = [&] { leaving.begin(boxes, task, beside); };
          // One column of tiles is enough to have the sums of all rows.
          if (ROW_SUMS && task.at.n == 0) {
            multiply<Tile, ALONG_A, ALONG_B, true>(c, shared, place, task.blocks(), begin);
          } else {
            multiply<Tile, ALONG_A, ALONG_B, false>(c, shared, place, task.blocks(), begin);
          }
          leaving.end(boxes, task, beside, c);
        });
        if (Tile::IN_TURN && whose == part()) await_turn();  // nobody is left to take it
        boxes.await_stored();
      });
  ptx::cluster_sync();  // nothing comes from the other block any more
}

}  // namespace hopper
