// Matrix products on tensor cores, c[m, n] = sum over k of a[m, k] b[n, k], for sm_80 and up: bf16 operands,
// f32 sums.
//
// Each operand lies in memory along k, as [m, k] or [n, k], or across it, as [k, m] or [k, n]: ldmatrix hands
// out the fragments of mma.sync in either case. That gives a linear layer's three products: nt, nn and tn.
//
// Split of the work: a block of four warps takes a square tile of c, each warp a quarter of it. Blocks of 64
// k come in by cp.async through a ring of stages; while the tensor cores work on 16 k, the fragments of the
// next 16 are on their way from shared memory. There is one barrier a block of k.
//
// Bound by the tensor cores when large. For 16 k a quarter of 64 x 64 reads 4 KB of shared memory, 32
// cycles of the multiprocessor at 128 bytes a cycle, and computes 131 kFLOP: 51 cycles on an H100, where
// mma.sync reaches 63 % of the peak of 4096 FLOP a cycle (Luo et al. 2024). With quarters of 32 x 32 shared
// memory is the bound, 16 cycles for 13.
#pragma once
#include "ptx.cuh"
#include "tile.cuh"
#include "vec.cuh"

namespace gemm {

constexpr int THREADS = 128;
constexpr int BLOCK_K = 64;  // a row of a tile that lies along k: 128 bytes, all 32 banks
constexpr int STEP_K = 16;   // of one mma
constexpr int STEPS = BLOCK_K / STEP_K;

// For products that fill the card. 96 KB of ring and 128 accumulators a thread: two blocks to a
// multiprocessor of an H100, so that one computes while the other leaves its tile; one on cards with 100 KB
// of shared memory. All extents along rows must be multiples of 8 elements, all pointers of 16 bytes.
struct Large {
  static constexpr int SIDE = 128, STAGES = 3, BLOCKS_PER_PROCESSOR = 2;
  static constexpr bool ANY_EXTENT = false;
};

// For the others: four times the blocks, and rows of any length.
struct Small {
  static constexpr int SIDE = 64, STAGES = 4, BLOCKS_PER_PROCESSOR = 3;
  static constexpr bool ANY_EXTENT = true;
};

template <class Tile>
struct Ring {
  bf16 a[Tile::STAGES][Tile::SIDE * BLOCK_K], b[Tile::STAGES][Tile::SIDE * BLOCK_K];
};

// How an operand lies in memory: along k, or along m (of a) or n (of b).
enum class Along { K, MN };

// --- From memory to the ring -------------------------------------------------------------------------------

// A matrix [rows, cols].
struct Matrix {
  const bf16* base;
  int rows, cols;

  // Of an element, which may lie outside: none to read then.
  __device__ __forceinline__ const bf16* at(int row, int col) const {
    return base + static_cast<size_t>(row) * cols + col;
  }
};

__device__ __forceinline__ bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

// Eight elements, one by one, zeros for those outside of `source`.
__device__ __forceinline__ void copy_elements(bf16* to, const Matrix& source, int row, int col) {
  float values[8];
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const bool in = row < source.rows && col + i < source.cols;
    values[i] = in ? __bfloat162float(*source.at(row, col + i)) : 0.0f;
  }
  store(to, values);
}

// A thread's share of the copies of an operand: in each tile, the chunk of 8 elements at (row, col) and those
// in the same place of every ROWS_AT_ONCE-th row below.
template <class Tile, Along ALONG>
struct Copies {
  static constexpr int ROWS = ALONG == Along::K ? Tile::SIDE : BLOCK_K;
  static constexpr int COLS = ALONG == Along::K ? BLOCK_K : Tile::SIDE;
  static constexpr int CHUNKS = COLS / 8, ROWS_AT_ONCE = THREADS / CHUNKS;

  const Matrix& source;
  int row, col;
  const bf16* chunk;  // at (row, col)

  // Begins with the tile at `mn` along m or n, and `k`.
  __device__ __forceinline__ Copies(const Matrix& source, int mn, int k)
      : source(source),
        row((ALONG == Along::K ? mn : k) + threadIdx.x / CHUNKS),
        col((ALONG == Along::K ? k : mn) + threadIdx.x % CHUNKS * 8),
        chunk(source.at(row, col)) {}

  // Begins to copy the tile, zeros for what lies outside of the operand, and goes on to the next along k.
  __device__ __forceinline__ void next(bf16* tile) {
    const int rows_left = col < source.cols ? source.rows - row : 0;
    const bf16* from = chunk;
#pragma unroll
    for (int pass = 0; pass < ROWS / ROWS_AT_ONCE; pass++) {
      const int r = pass * ROWS_AT_ONCE;
      bf16* to = tile + tile_at<COLS>(threadIdx.x / CHUNKS + r, threadIdx.x % CHUNKS);
      const bool in = r < rows_left;
      const bool whole = in && col + 8 <= source.cols && aligned(from);
      if (Tile::ANY_EXTENT && !whole) {
        copy_elements(to, source, row + r, col);
      } else {
        // Of no bytes it reads nothing, and writes zeros.
        ptx::cp_async16(ptx::smem_u32(to), from, in ? 16 : 0);
      }
      from += static_cast<size_t>(ROWS_AT_ONCE) * source.cols;
    }
    if constexpr (ALONG == Along::K) {
      col += BLOCK_K;
      chunk += BLOCK_K;
    } else {
      row += BLOCK_K;
      chunk += static_cast<size_t>(BLOCK_K) * source.cols;
    }
  }
};

// --- From the ring to the tensor cores ---------------------------------------------------------------------

enum class Side { A, B };

// What one ldmatrix gives: 16 elements along m (or n) by 16 along k, as four 8 x 8 matrices. mma takes those
// of a in the order (m, k), (m + 8, k), (m, k + 8), (m + 8, k + 8); of b it takes (n, k), (n, k + 8), and
// then the two of n + 8.
template <class Tile, Side SIDE, Along ALONG>
__device__ __forceinline__ void load_fragment(uint32_t (&fragment)[4], const bf16* tile, int mn, int k) {
  const int lane = lane_id(), row = lane % 8;
  const int upper_mn = SIDE == Side::A ? lane / 8 % 2 : lane / 16;
  const int upper_k = SIDE == Side::A ? lane / 16 : lane / 8 % 2;
  if constexpr (ALONG == Along::K) {
    const int at = tile_at<BLOCK_K>(mn + upper_mn * 8 + row, k / 8 + upper_k);
    ptx::ldmatrix_x4(fragment, ptx::smem_u32(tile + at));
  } else {
    const int at = tile_at<Tile::SIDE>(k + upper_k * 8 + row, mn / 8 + upper_mn);
    ptx::ldmatrix_x4_trans(fragment, ptx::smem_u32(tile + at));
  }
}

// A warp's quarter of the tile.
template <class Tile>
struct Quarter {
  static constexpr int SIDE = Tile::SIDE / 2;
  static constexpr int M = SIDE / 16, N = SIDE / 8;  // results of mma, 16 x 8

  float sum[M][N][4];
  float row_sum[M][4];  // of a's rows, the same in each column

  // Where it begins in the tile.
  __device__ __forceinline__ static int m() { return warp_id() / 2 * SIDE; }
  __device__ __forceinline__ static int n() { return warp_id() % 2 * SIDE; }
};

// A warp's operands of one step.
template <class Tile>
struct Fragments {
  static constexpr int COUNT = Quarter<Tile>::SIDE / 16;
  uint32_t a[COUNT][4], b[COUNT][4];

  template <Along ALONG_A, Along ALONG_B>
  __device__ __forceinline__ void load(const Ring<Tile>& ring, int stage, int k) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      load_fragment<Tile, Side::A, ALONG_A>(a[i], ring.a[stage], Quarter<Tile>::m() + i * 16, k);
    }
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      load_fragment<Tile, Side::B, ALONG_B>(b[i], ring.b[stage], Quarter<Tile>::n() + i * 16, k);
    }
  }
};

// Adds the products of one step; with `row_sums` those of a with ones too.
template <bool ROW_SUMS, class Tile>
__device__ __forceinline__ void add_products(Quarter<Tile>& c, const Fragments<Tile>& f, bool row_sums) {
#pragma unroll
  for (int i = 0; i < Quarter<Tile>::M; i++) {
#pragma unroll
    for (int j = 0; j < Quarter<Tile>::N; j++) {
      const uint32_t b[2] = {f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]};
      ptx::mma_m16n8k16_bf16(c.sum[i][j], f.a[i], b);
    }
  }
  if (ROW_SUMS && row_sums) {
    constexpr uint32_t ONES = 0x3F803F80;  // two of bf16
    const uint32_t b[2] = {ONES, ONES};
#pragma unroll
    for (int i = 0; i < Quarter<Tile>::M; i++) ptx::mma_m16n8k16_bf16(c.row_sum[i], f.a[i], b);
  }
}

// --- The product -------------------------------------------------------------------------------------------

// Where a block's tile begins.
struct Corner {
  int m, n;
};

// That of this block's tile. Consecutive numbers take 16 rows of tiles before the next column: as those that are
// computed together make about a square of tiles, they read few distinct rows of a and b.
template <class Tile>
__device__ __forceinline__ Corner corner(int m, int n) {
  constexpr int GROUP = 16, SIDE = Tile::SIDE;
  const int tile = blockIdx.x, rows = (m + SIDE - 1) / SIDE, cols = (n + SIDE - 1) / SIDE;
  const int group = tile / (GROUP * cols), within = tile % (GROUP * cols);
  const int height = min(GROUP, rows - group * GROUP);
  return {(group * GROUP + within % height) * SIDE, within / height * SIDE};
}

// Adds to this warp's quarter of the tile at `at` the products over k from `from` on. The operands end at the
// same k: what is copied beyond is zeros.
template <class Tile, Along ALONG_A, Along ALONG_B, bool ROW_SUMS = false>
__device__ __forceinline__ void multiply(
    Quarter<Tile>& c, const Matrix& a, const Matrix& b, Corner at, int from, int to, bool row_sums = false) {
  DYN_SMEM(Ring<Tile>, ring);
  Copies<Tile, ALONG_A> copies_a(a, at.m, from);
  Copies<Tile, ALONG_B> copies_b(b, at.n, from);
#pragma unroll
  for (int stage = 0; stage < Tile::STAGES - 1; stage++) {
    copies_a.next(ring->a[stage]);
    copies_b.next(ring->b[stage]);
    ptx::cp_async_commit();
  }
  ptx::cp_async_wait<Tile::STAGES - 2>();
  __syncthreads();

  Fragments<Tile> fragments[2];
  fragments[0].template load<ALONG_A, ALONG_B>(*ring, 0, 0);
  int stage = 0, free_stage = Tile::STAGES - 1;
  for (int k = from; k < to; k += BLOCK_K) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      if (step == STEPS - 1) {
        // Everyone has the last fragments of this block, and the next block is there. (After the last one the
        // fragments that are loaded below belong to no block, and nothing uses them.)
        ptx::cp_async_wait<Tile::STAGES - 2>();
        __syncthreads();
        free_stage = stage;
        stage = stage + 1 == Tile::STAGES ? 0 : stage + 1;
      }
      fragments[(step + 1) % 2].template load<ALONG_A, ALONG_B>(*ring, stage, (step + 1) % STEPS * STEP_K);
      // The copies in two parts, with products between them.
      if (step == 0) copies_a.next(ring->a[free_stage]);
      if (step == 1) {
        copies_b.next(ring->b[free_stage]);
        ptx::cp_async_commit();
      }
      add_products<ROW_SUMS>(c, fragments[step % 2], row_sums);
    }
  }
  ptx::cp_async_wait<0>();
}

// --- From the accumulators to memory -----------------------------------------------------------------------

// Of four results of mma side by side, 8 x 8 each, a lane has two columns of each. Gives it all eight columns
// of one: the one of its place in its quad.
__device__ __forceinline__ void gather_columns(float (&row)[8], const float (&pairs)[4][2]) {
  const bool upper = lane_id() & 2, odd = lane_id() & 1;
  // Of two results what two lanes have, those of the quad's lower and upper half with the same `odd`.
  float halves[2][2][2];
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float mine = upper ? pairs[j + 2][e] : pairs[j][e];
      const float other = __shfl_xor_sync(~0u, upper ? pairs[j][e] : pairs[j + 2][e], 2);
      halves[0][j][e] = upper ? other : mine;
      halves[1][j][e] = upper ? mine : other;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
      const float mine = odd ? halves[half][1][e] : halves[half][0][e];
      const float other = __shfl_xor_sync(~0u, odd ? halves[half][0][e] : halves[half][1][e], 1);
      row[half * 4 + e] = odd ? other : mine;
      row[half * 4 + 2 + e] = odd ? mine : other;
    }
  }
}

// Calls `leave(row, col, values)` for all of the quarter that is inside of [m, n]: eight columns from a
// multiple of 8 on.
template <class Tile, class Leave>
__device__ __forceinline__ void for_each_eight(
    const Quarter<Tile>& c, Corner at, int m, int n, const Leave& leave) {
  using Q = Quarter<Tile>;
#pragma unroll
  for (int i = 0; i < Q::M; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = at.m + Q::m() + i * 16 + half * 8 + lane_id() / 4;
#pragma unroll
      for (int group = 0; group < Q::N / 4; group++) {
        const int col = at.n + Q::n() + group * 32 + lane_id() % 4 * 8;
        float pairs[4][2], values[8];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          pairs[j][0] = c.sum[i][group * 4 + j][half * 2];
          pairs[j][1] = c.sum[i][group * 4 + j][half * 2 + 1];
        }
        gather_columns(values, pairs);
        if (row < m && col < n) leave(row, col, values);
      }
    }
  }
}

// Eight neighbours in a row of which `left` are left: as vectors, where the tile's rule or their address
// allows it.
template <class Tile>
__device__ __forceinline__ bool as_vectors(const void* p, int left) {
  return !Tile::ANY_EXTENT || (left >= 8 && aligned(p));
}

template <class Tile, class T>
__device__ __forceinline__ void load_eight(const T* from, int left, float (&x)[8]) {
  if (as_vectors<Tile>(from, left)) return load(from, x);
#pragma unroll
  for (int i = 0; i < 8; i++) x[i] = i < left ? static_cast<float>(from[i]) : 0.0f;
}

template <class Tile, class T>
__device__ __forceinline__ void store_eight(T* to, int left, const float (&x)[8]) {
  if (as_vectors<Tile>(to, left)) return store(to, x);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (i < left) to[i] = static_cast<T>(x[i]);
  }
}

}  // namespace gemm
