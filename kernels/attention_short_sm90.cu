// Attention per head as attention.cu has it, forward and its gradient, over short sequences of heads of width 64
// on Hopper: a block has all of one head in shared memory. The grid is [1, H, B].
//
// One thread loads by TMA, rows past the end of the sequence as zeros, and what is left is stored by TMA from tiles
// that nobody reads any more. Warps own strips of 16 rows and multiply by mma.sync, which wastes less of a short
// sequence than wgmma's 64 rows. A block computes only once all has come; the others of its multiprocessor fill the
// time: five of up to 64 tokens forward, three for the gradient.
//
// Bound by memory, 512 bytes a token forward and 1024 for the gradient, and from about 100 tokens on by the latency of
// a warp's own steps and by the shared memory from which it reads all others for its 16 rows, 256 bytes for each.
#include "attention_whole.cuh"

using namespace attn;
using namespace hopper;

// Keys whose scores a warp has at a time; tiles have a whole number of as many rows.
constexpr int CHUNK = 32;

// A warp for each 16 queries, of at most 160: at 96 registers there is room for 20 of them. Dynamic shared memory: tiles
// of q, later of y, of k and of v, and a barrier.
extern "C" __global__ void __launch_bounds__(320, 2) attention_short(
    const __grid_constant__ TensorMap qkv,  // [B, L, 3 H 64], boxes of all rows of a head
    const __grid_constant__ TensorMap y,    // [B, L, H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,   // [B] or null
    float* __restrict__ log_sum,            // [B, H, L]
    int length, float score_scale) {
  DYN_SMEM(bf16, memory);
  const Tiles tiles(memory, length, CHUNK);
  const int heads = gridDim.y, h = blockIdx.y, first = warp_id() * 16;
  tiles.begin_load<3>([&](int i) { return Columns{&qkv, (i * heads + h) * HEAD_WIDTH}; });
  const Head head = this_head(lengths, length, HEAD_WIDTH);
  const float scale2 = score_scale * LOG2_E;
  bf16* const own = tiles[0] + first * HEAD_WIDTH;
  tiles.await<3>();

  Operand<1, 4> q;
  load_operand(q, own);
  Sums<1, 8> out = {};
  Softmax<1> softmax;
  const bf16* k_tile = tiles[1];
  const int to_v = tiles.rows * HEAD_WIDTH;
#pragma unroll 1
  for (int left = head.keys; left > 0; left -= CHUNK) {
    Sums<1, CHUNK / 8> s = {};
    multiply_nt(s, q, k_tile);
    if (left < CHUNK) mask(s, left);
    softmax.weigh(s, out, scale2);
    multiply_nn(out, s, k_tile + to_v);
    k_tile += CHUNK * HEAD_WIDTH;
  }
  softmax.finish(out, log_sum + head.row, first, length, score_scale);
  store_sums({&y, h * HEAD_WIDTH}, first, out[0][0], 1.0f, own);
  await_stores();
}
EMU_KERNEL(attention_short)

// A thread at least for each row, of at most 144; a warp has one strip after the other. Blocks have at most 192 threads:
// twice as many are said here so that 168 registers suffice, with which 12 warps share a multiprocessor. Dynamic shared
// memory: tiles of q, of k and v, later of dk and dv, of dy and of y, later of dq; a barrier; the rows' statistics.
extern "C" __global__ void __launch_bounds__(384, 1) attention_short_grad(
    const __grid_constant__ TensorMap qkv,      // [B, L, 3 H 64], boxes of all rows of a head
    const __grid_constant__ TensorMap dy_rows,  // [B, L, H 64], the same
    const __grid_constant__ TensorMap y_rows,   // [B, L, H 64], the same
    const __grid_constant__ TensorMap dqkv,     // [B, L, 3 H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,       // [B] or null
    const float* __restrict__ log_sum,          // [B, H, L]
    int length, float score_scale) {
  DYN_SMEM(bf16, memory);
  const Tiles tiles(memory, length, CHUNK);
  const Head head = this_head(lengths, length, HEAD_WIDTH);
  const Statistics* const statistics =
      load_for_gradient(tiles, &qkv, &dy_rows, &y_rows, log_sum + head.row, length);
  const int heads = gridDim.y, h = blockIdx.y, strips = blockDim.x / 2;
  const float scale2 = score_scale * LOG2_E;

  for (int first = warp_id() * 16; first < length; first += strips) {
    const int at = first * HEAD_WIDTH;
    Operand<1, 4> q, dy;
    load_operand(q, tiles[Q] + at);
    load_operand(dy, tiles[DY] + at);
    Statistics own[1][2];
    own_rows(own, statistics + first);
    Sums<1, 8> dq = {};
    const bf16* k_tile = tiles[K];
#pragma unroll 1
    for (int left = head.keys; left > 0; left -= SLICE) {
      query_grad(dq, q, dy, own, k_tile, k_tile + tiles.rows * HEAD_WIDTH, left, scale2);
      k_tile += SLICE * HEAD_WIDTH;
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
    const bf16* q_tile = tiles[Q];
    const Statistics* rows = statistics;
#pragma unroll 1
    for (int left = first < head.keys ? length : 0; left > 0; left -= SLICE) {
      key_grad(dk, dv, k, v, q_tile, q_tile + 3 * tiles.rows * HEAD_WIDTH, rows, scale2);
      q_tile += SLICE * HEAD_WIDTH;
      rows += SLICE;
    }
    scale_rows(dk, score_scale, head.keys - first);
    scale_rows(dv, 1.0f, head.keys - first);
    store_sums({&dqkv, (heads + h) * HEAD_WIDTH}, first, dk[0][0], 1.0f, tiles[K] + at);
    store_sums({&dqkv, (2 * heads + h) * HEAD_WIDTH}, first, dv[0][0], 1.0f, tiles[V] + at);
  }
  await_stores();
}
EMU_KERNEL(attention_short_grad)
