// Attention per head as attention.cu has it, forward and its gradient, over short sequences of heads of width 64
// on Hopper: a block has all of one head in shared memory. The grid is [1, H, B].
//
// One thread loads by TMA, rows past the end of the sequence as zeros, and what is left is stored by TMA from tiles
// that nobody reads any more. Warps own strips of 16 rows and multiply by mma.sync, which wastes less of a short
// sequence than wgmma's 64 rows. A block computes only once all has come; the others of its multiprocessor fill the
// time, about four blocks of 54 tokens and two of 160.
//
// Bound by memory, 512 bytes a token forward and 1024 for the gradient, up to about 150 tokens (100 for the gradient),
// then by the shared memory from which a warp reads all keys and values for its rows: 8 KB for 32 of them, whether
// they meet 16 rows or 32. With 32 more registers are needed than twice the warps would have.
#include "attention_sm90.cuh"

using namespace attn;
using namespace hopper;

namespace {

// Keys whose scores a warp has at a time; tiles have a whole number of as many rows.
constexpr int CHUNK = 32;

// Tiles of all rows, one after the other, and behind them a barrier that is passed once all have come.
struct Tiles {
  bf16* first;
  int rows;

  __device__ __forceinline__ Tiles(bf16* first, int length)
      : first(first), rows((length + CHUNK - 1) / CHUNK * CHUNK) {}

  __device__ __forceinline__ bf16* operator[](int i) const { return first + i * rows * HEAD_WIDTH; }

  // Loads COUNT tiles, of the columns that `columns(i)` says, in boxes of all rows or, if they are more than a box can
  // have, of half of them.
  template <int COUNT, class ColumnsOf>
  __device__ __forceinline__ void begin_load(const ColumnsOf& columns) const {
    if (threadIdx.x == 0) {
      const uint32_t barrier = ptx::smem_u32((*this)[COUNT]);
      ptx::mbar_init(barrier, 1);
      ptx::mbar_fence_init();
      ptx::mbar_arrive_expect_tx(barrier, COUNT * rows * HEAD_WIDTH * sizeof(bf16));
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        const Columns from = columns(i);
        const uint32_t tile = ptx::smem_u32((*this)[i]);
        ptx::tma_load_3d(tile, from.map, from.col, 0, blockIdx.z, barrier);
        if (rows > 256) ptx::tma_load_3d(tile + rows * HEAD_WIDTH, from.map, from.col, rows / 2, blockIdx.z, barrier);
      }
    }
    __syncthreads();
  }
  template <int COUNT>
  __device__ __forceinline__ void await() const {
    ptx::mbar_wait(ptx::smem_u32((*this)[COUNT]), 0);
  }
};

// --- Forward -----------------------------------------------------------------------------------------------

// M strips of 16 queries a warp.
template <int M>
__device__ __forceinline__ void attend(
    const TensorMap* qkv, const TensorMap* y, const uint32_t* __restrict__ lengths, float* __restrict__ log_sum,
    int length, float score_scale) {
  DYN_SMEM(bf16, memory);
  const Tiles tiles(memory, length);
  const int heads = gridDim.y, h = blockIdx.y, first = warp_id() * 16 * M;
  tiles.begin_load<3>([&](int i) { return Columns{qkv, (i * heads + h) * HEAD_WIDTH}; });
  const int keys = counted_keys(lengths, length);
  const float scale2 = score_scale * LOG2_E;
  bf16* const own = tiles[0] + first * HEAD_WIDTH;
  tiles.await<3>();

  Operand<M, 4> q;
  load_operand(q, own);
  Sums<M, 8> out = {};
  Softmax<M> softmax;
  const bf16* k_tile = tiles[1];
  const int to_v = tiles.rows * HEAD_WIDTH;
#pragma unroll 1
  for (int left = keys; left > 0; left -= CHUNK) {
    Sums<M, CHUNK / 8> s = {};
    multiply_nt(s, q, k_tile);
    if (left < CHUNK) mask(s, left);
    softmax.weigh(s, out, scale2);
    multiply_nn(out, s, k_tile + to_v);
    k_tile += CHUNK * HEAD_WIDTH;
  }
  softmax.finish(out, log_sum + this_head(lengths, length, HEAD_WIDTH).row, first, length, score_scale);
#pragma unroll
  for (int m = 0; m < M; m++) {
    store_sums({y, h * HEAD_WIDTH}, first + m * 16, out[m][0], 1.0f, own + m * 16 * HEAD_WIDTH);
  }
  await_stores();
}

}  // namespace

// A warp for each 16 queries, of at most 128. Dynamic shared memory: tiles of q, later of y, k and v, a barrier.
extern "C" __global__ void __launch_bounds__(256, 2) attention_short(
    const __grid_constant__ TensorMap qkv,  // [B, L, 3 H 64], boxes of all rows of a head, or of half of them
    const __grid_constant__ TensorMap y,    // [B, L, H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,   // [B] or null
    float* __restrict__ log_sum,            // [B, H, L]
    int length, float score_scale) {
  attend<1>(&qkv, &y, lengths, log_sum, length, score_scale);
}
EMU_KERNEL(attention_short)

// A warp for each 32 queries, of at most 320.
extern "C" __global__ void __launch_bounds__(320, 1) attention_medium(
    const __grid_constant__ TensorMap qkv,  // [B, L, 3 H 64], boxes of all rows of a head, or of half of them
    const __grid_constant__ TensorMap y,    // [B, L, H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,   // [B] or null
    float* __restrict__ log_sum,            // [B, H, L]
    int length, float score_scale) {
  attend<2>(&qkv, &y, lengths, log_sum, length, score_scale);
}
EMU_KERNEL(attention_medium)

// --- Gradient ----------------------------------------------------------------------------------------------

// A thread at least for each row, of at most 320, and a warp for each two strips, of which it has one after the other.
// Dynamic shared memory: tiles of q, of k and v, later of dk and dv, of dy and of y, later of dq; a barrier; the rows'
// statistics.
extern "C" __global__ void __launch_bounds__(384, 1) attention_short_grad(
    const __grid_constant__ TensorMap qkv,      // [B, L, 3 H 64], boxes of all rows of a head, or of half of them
    const __grid_constant__ TensorMap dy_rows,  // [B, L, H 64], the same
    const __grid_constant__ TensorMap y_rows,   // [B, L, H 64], the same
    const __grid_constant__ TensorMap dqkv,     // [B, L, 3 H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,       // [B] or null
    const float* __restrict__ log_sum,          // [B, H, L]
    int length, float score_scale) {
  enum { Q, K, V, DY, Y, COUNT };
  DYN_SMEM(bf16, memory);
  const Tiles tiles(memory, length);
  const int heads = gridDim.y, h = blockIdx.y, strips = blockDim.x / 2;
  tiles.begin_load<COUNT>([&](int i) {
    if (i <= V) return Columns{&qkv, (i * heads + h) * HEAD_WIDTH};
    return Columns{i == DY ? &dy_rows : &y_rows, h * HEAD_WIDTH};
  });
  const Head head = this_head(lengths, length, HEAD_WIDTH);
  const float scale2 = score_scale * LOG2_E;
  Statistics* const statistics = reinterpret_cast<Statistics*>(tiles[COUNT]) + 2;

  const int row = threadIdx.x;
  const float row_log_sum = row < length ? log_sum[head.row + row] * LOG2_E : 0.0f;
  tiles.await<COUNT>();
  if (row < tiles.rows) {
    float delta = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < HEAD_WIDTH / 8; chunk++) {
      float terms[8], other[8];
      load(tiles[DY] + tile_at<HEAD_WIDTH>(row, chunk), terms);
      load(tiles[Y] + tile_at<HEAD_WIDTH>(row, chunk), other);
#pragma unroll
      for (int c = 0; c < 8; c++) terms[c] *= other[c];
      delta += sum(terms);
    }
    statistics[row] = make_float2(row_log_sum, delta);
  }
  __syncthreads();

  for (int first = warp_id() * 16; first < length; first += strips) {
    const int at = first * HEAD_WIDTH;
    Operand<1, 4> q, dy;
    load_operand(q, tiles[Q] + at);
    load_operand(dy, tiles[DY] + at);
    Statistics own[1][2];
    own_rows(own, statistics + first);
    Sums<1, 8> dq = {};
#pragma unroll 1
    for (int key = 0; key < head.keys; key += SLICE) {
      const int other = key * HEAD_WIDTH;
      query_grad(dq, q, dy, own, tiles[K] + other, tiles[V] + other, head.keys - key, scale2);
    }
    store_sums({&dqkv, h * HEAD_WIDTH}, first, dq[0][0], score_scale, tiles[Y] + at);
  }
  __syncthreads();  // nobody reads the keys and values of another's strip any more

  for (int first = warp_id() * 16; first < length; first += strips) {
    const int at = first * HEAD_WIDTH;
    Operand<1, 4> k, v;
    load_operand(k, tiles[K] + at);
    load_operand(v, tiles[V] + at);
    Sums<1, 8> dk = {}, dv = {};
    const int queries = first < head.keys ? length : 0;
#pragma unroll 1
    for (int query = 0; query < queries; query += SLICE) {
      const int other = query * HEAD_WIDTH;
      key_grad(dk, dv, k, v, tiles[Q] + other, tiles[DY] + other, statistics + query, scale2);
    }
    scale_rows(dk, score_scale, head.keys - first);
    scale_rows(dv, 1.0f, head.keys - first);
    store_sums({&dqkv, (heads + h) * HEAD_WIDTH}, first, dk[0][0], 1.0f, tiles[K] + at);
    store_sums({&dqkv, (2 * heads + h) * HEAD_WIDTH}, first, dv[0][0], 1.0f, tiles[V] + at);
  }
  await_stores();
}
EMU_KERNEL(attention_short_grad)
