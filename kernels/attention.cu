// Attention per head over the first lengths[b] keys of each sequence, and its gradient (FlashAttention-2,
// without causal masks and without atomics):
//
//   s = scale q k^T    p = softmax(s)    y = p v
//   dp = dy v^T        ds = p (dp - rowsum(dy y))
//   dq = scale ds k    dk = scale ds^T q    dv = p^T dy
//
// Queries, keys and values are read where a linear layer left them, [B, L, 3, H, width] in bf16. The grid is
// [blocks of rows, H, B]: a CTA owns rows of one head and streams the rows they meet through shared memory,
// two blocks of 64 in turn, so that one arrives while the other is multiplied. Scores and weights live in
// registers alone: a product's sums are the next product's left operand. For that the gradient of queries and
// that of keys and values are two kernels, each with all its sums in registers in a fixed order; computing
// the weights twice makes 7 products of 5, but there are no atomics and no partial sums in memory. For a
// short sequence one CTA does both and reads everything once.
//
// Bound by memory to about 150 tokens, beyond by mma.sync and by the shared memory that feeds it, which is
// why each fragment of the streamed rows meets two strips of 16 rows where registers allow.
//
// Width: a multiple of 8, at most 64. Exponentials are base 2, with log2(e) in the scale; statistics are f32;
// weights and the scores' gradients are rounded to bf16 as operands.
#include "attention.cuh"

using namespace attn;

// Starts to copy a block of keys and values to the stage that is its turn's.
__device__ __forceinline__ void load_keys(
    Stage* stages, const Head& head, const bf16* __restrict__ qkv, int from, int width) {
  Stage& stage = stages[from / BLOCK % 2];
  load_rows(stage.first, qkv + head.k, head.stride, from, BLOCK, head.keys, width);
  load_rows(stage.second, qkv + head.v, head.stride, from, BLOCK, head.keys, width);
}

// 32 rows a warp, a thread for each row: blockDim.x rows a CTA. Dynamic shared memory: those rows of q, later
// of y, then one stage of keys and values if they fit one block, else two.
extern "C" __global__ void __launch_bounds__(128, 2) attention(
    const bf16* __restrict__ qkv,          // [B, L, 3, H, width]
    const uint32_t* __restrict__ lengths,  // [B] or null
    bf16* __restrict__ y,                  // [B, L, H, width]
    float* __restrict__ log_sum,           // [B, H, L]
    int length, int width, float score_scale) {
  DYN_SMEM(bf16, tiles);
  const Head head = this_head(lengths, length, width);
  const int first = blockIdx.x * blockDim.x, warp_row = warp_id() * 32;
  const bool active = first + warp_row < length;
  const float scale2 = score_scale * LOG2_E;
  bf16* const q_tile = tiles;
  Stage* const stages = reinterpret_cast<Stage*>(tiles + blockDim.x * COLUMNS);

  load_rows(q_tile, qkv + head.q, head.stride, first, blockDim.x, length, width);
  load_keys(stages, head, qkv, 0, width);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  Operand<2, 4> q;
  load_operand(q, q_tile + warp_row * COLUMNS);

  Sums<2, 8> out = {};
  Softmax<2> softmax;
  for (int from = 0; from < head.keys; from += BLOCK) {
    if (from + BLOCK < head.keys) load_keys(stages, head, qkv, from + BLOCK, width);
    ptx::cp_async_commit();
    if (active) {
      const Stage& stage = stages[from / BLOCK % 2];
      Sums<2, 8> s = {};
      multiply_nt(s, q, stage.first);
      if (head.keys - from < BLOCK) mask(s, head.keys - from);
      softmax.weigh(s, out, scale2);
      multiply_nn(out, s, stage.second);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
  }

  softmax.finish(out, log_sum + head.row, first + warp_row, length, score_scale);
  to_bf16(q, out);
  store_rows(y + head.y, head.y_stride, first + warp_row, length, width, q, q_tile + warp_row * COLUMNS);
}
EMU_KERNEL(attention)

// Statistics of a warp's rows, from .. from + 16 M of a head, eight threads a row; zeros beyond the length.
template <int M>
__device__ __forceinline__ void row_statistics(Statistics* statistics, const Head& head,
    const bf16* __restrict__ dy, const bf16* __restrict__ y, const float* __restrict__ log_sum, int from,
    int length, int width) {
  const int lane = lane_id(), chunk = lane % 8;
#pragma unroll
  for (int i = 0; i < 4 * M; i++) {
    const int r = i * 4 + lane / 8;
    const bool in = from + r < length;
    float delta = 0.f;
    if (in && chunk * 8 < width) {
      const size_t at = head.y + (size_t)(from + r) * head.y_stride + chunk * 8;
      float terms[8], other[8];
      load(dy + at, terms);
      load(y + at, other);
#pragma unroll
      for (int c = 0; c < 8; c++) terms[c] *= other[c];
      delta = sum(terms);
    }
#pragma unroll
    for (int apart = 1; apart < 8; apart *= 2) delta += __shfl_xor_sync(0xffffffffu, delta, apart);
    if (chunk == 0) statistics[r] = make_float2(in ? log_sum[head.row + from + r] * LOG2_E : 0.f, delta);
  }
  __syncwarp();
}

// 32 query rows a warp, as `attention`. Dynamic shared memory: blockDim.x rows of q, later of dq; as many of
// dy; two stages of keys and values; the rows' statistics, which `attention_grad_kv` reads from memory.
extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_q(
    const bf16* __restrict__ dy,           // [B, L, H, width]
    const bf16* __restrict__ qkv,          // [B, L, 3, H, width]
    const bf16* __restrict__ y,            // [B, L, H, width]
    const float* __restrict__ log_sum,     // [B, H, L]
    const uint32_t* __restrict__ lengths,  // [B] or null
    bf16* __restrict__ dqkv,               // [B, L, 3, H, width], the queries' third
    Statistics* __restrict__ statistics,   // [B, H, L]
    int length, int width, float score_scale) {
  DYN_SMEM(bf16, tiles);
  const Head head = this_head(lengths, length, width);
  const int first = blockIdx.x * blockDim.x, warp_row = warp_id() * 32;
  const bool active = first + warp_row < length;
  const float scale2 = score_scale * LOG2_E;
  bf16* const q_tile = tiles;
  bf16* const dy_tile = q_tile + blockDim.x * COLUMNS;
  Stage* const stages = reinterpret_cast<Stage*>(dy_tile + blockDim.x * COLUMNS);
  Statistics* const warp_statistics = reinterpret_cast<Statistics*>(stages + 2) + warp_row;

  load_rows(q_tile, qkv + head.q, head.stride, first, blockDim.x, length, width);
  load_rows(dy_tile, dy + head.y, head.y_stride, first, blockDim.x, length, width);
  load_keys(stages, head, qkv, 0, width);
  ptx::cp_async_commit();
  row_statistics<2>(warp_statistics, head, dy, y, log_sum, first + warp_row, length, width);
  const int row = first + threadIdx.x;
  if (row < length) statistics[head.row + row] = warp_statistics[lane_id()];
  Statistics own[2][2];
  own_rows(own, warp_statistics);
  ptx::cp_async_wait<0>();
  __syncthreads();
  Operand<2, 4> q, dy_rows;
  load_operand(q, q_tile + warp_row * COLUMNS);
  load_operand(dy_rows, dy_tile + warp_row * COLUMNS);

  Sums<2, 8> dq = {};
  for (int from = 0; from < head.keys; from += BLOCK) {
    if (from + BLOCK < head.keys) load_keys(stages, head, qkv, from + BLOCK, width);
    ptx::cp_async_commit();
    const Stage& stage = stages[from / BLOCK % 2];
    for (int key = 0; active && key < min(BLOCK, head.keys - from); key += SLICE)
      query_grad(dq, q, dy_rows, own, stage.first + key * COLUMNS, stage.second + key * COLUMNS,
          head.keys - from - key, scale2);
    ptx::cp_async_wait<0>();
    __syncthreads();
  }
  scale_rows(dq, score_scale, 16 * 2);
  to_bf16(q, dq);
  store_rows(dqkv + head.q, head.stride, first + warp_row, length, width, q, q_tile + warp_row * COLUMNS);
}
EMU_KERNEL(attention_grad_q)

// A block of 64 keys a CTA, 16 a warp. Dynamic shared memory: those rows of k and v, later of dk and dv; two
// stages of queries and dy; their statistics.
extern "C" __global__ void __launch_bounds__(128, 3) attention_grad_kv(
    const bf16* __restrict__ dy,                // [B, L, H, width]
    const bf16* __restrict__ qkv,               // [B, L, 3, H, width]
    const uint32_t* __restrict__ lengths,       // [B] or null
    const Statistics* __restrict__ statistics,  // [B, H, L]
    bf16* __restrict__ dqkv,                    // [B, L, 3, H, width], the keys' and values' thirds
    int length, int width, float score_scale) {
  DYN_SMEM(bf16, tiles);
  const Head head = this_head(lengths, length, width);
  const int first = blockIdx.x * BLOCK, warp_row = warp_id() * 16;
  const bool active = first + warp_row < head.keys;
  const float scale2 = score_scale * LOG2_E;
  bf16* const k_tile = tiles;
  bf16* const v_tile = k_tile + BLOCK * COLUMNS;
  Stage* const stages = reinterpret_cast<Stage*>(v_tile + BLOCK * COLUMNS);
  Statistics* const stage_statistics = reinterpret_cast<Statistics*>(stages + 2);
  const auto load_queries = [&](int from) {
    Stage& stage = stages[from / BLOCK % 2];
    load_rows(stage.first, qkv + head.q, head.stride, from, BLOCK, length, width);
    load_rows(stage.second, dy + head.y, head.y_stride, from, BLOCK, length, width);
    for (int r = threadIdx.x; r < BLOCK; r += blockDim.x) {
      const bool in = from + r < length;
      Statistics* to = stage_statistics + from / BLOCK % 2 * BLOCK + r;
      ptx::cp_async8(ptx::smem_u32(to), statistics + head.row + (in ? from + r : 0), in ? 8 : 0);
    }
  };

  load_rows(k_tile, qkv + head.k, head.stride, first, BLOCK, head.keys, width);
  load_rows(v_tile, qkv + head.v, head.stride, first, BLOCK, head.keys, width);
  load_queries(0);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  Operand<1, 4> k, v;
  load_operand(k, k_tile + warp_row * COLUMNS);
  load_operand(v, v_tile + warp_row * COLUMNS);

  Sums<1, 8> dk = {}, dv = {};
  const int queries = first < head.keys ? length : 0;
  for (int from = 0; from < queries; from += BLOCK) {
    if (from + BLOCK < queries) load_queries(from + BLOCK);
    ptx::cp_async_commit();
    const Stage& stage = stages[from / BLOCK % 2];
    const Statistics* stage_rows = stage_statistics + from / BLOCK % 2 * BLOCK;
    for (int row = 0; active && row < min(BLOCK, queries - from); row += SLICE)
      key_grad(dk, dv, k, v, stage.first + row * COLUMNS, stage.second + row * COLUMNS, stage_rows + row,
          scale2);
    ptx::cp_async_wait<0>();
    __syncthreads();
  }
  const int from = first + warp_row;
  scale_rows(dk, score_scale, head.keys - from);
  to_bf16(k, dk);
  store_rows(dqkv + head.k, head.stride, from, length, width, k, k_tile + warp_row * COLUMNS);
  scale_rows(dv, 1.f, head.keys - from);
  to_bf16(v, dv);
  store_rows(dqkv + head.v, head.stride, from, length, width, v, v_tile + warp_row * COLUMNS);
}
EMU_KERNEL(attention_grad_kv)

// A whole sequence in one CTA, 16 of its rows a warp: blockDim.x / 2 rows. Dynamic shared memory: those rows
// of q, k, v (later of dq, dk, dv) and dy, and their statistics.
extern "C" __global__ void __launch_bounds__(192, 2) attention_grad(
    const bf16* __restrict__ dy,           // [B, L, H, width]
    const bf16* __restrict__ qkv,          // [B, L, 3, H, width]
    const bf16* __restrict__ y,            // [B, L, H, width]
    const float* __restrict__ log_sum,     // [B, H, L]
    const uint32_t* __restrict__ lengths,  // [B] or null
    bf16* __restrict__ dqkv,               // [B, L, 3, H, width]
    int length, int width, float score_scale) {
  DYN_SMEM(bf16, tiles);
  const Head head = this_head(lengths, length, width);
  const int rows = blockDim.x / 2, warp_row = warp_id() * 16;
  const float scale2 = score_scale * LOG2_E;
  bf16* const q_tile = tiles;
  bf16* const k_tile = q_tile + rows * COLUMNS;
  bf16* const v_tile = k_tile + rows * COLUMNS;
  bf16* const dy_tile = v_tile + rows * COLUMNS;
  Statistics* const statistics = reinterpret_cast<Statistics*>(dy_tile + rows * COLUMNS);

  load_rows(q_tile, qkv + head.q, head.stride, 0, rows, length, width);
  load_rows(k_tile, qkv + head.k, head.stride, 0, rows, head.keys, width);
  load_rows(v_tile, qkv + head.v, head.stride, 0, rows, head.keys, width);
  load_rows(dy_tile, dy + head.y, head.y_stride, 0, rows, length, width);
  ptx::cp_async_commit();
  row_statistics<1>(statistics + warp_row, head, dy, y, log_sum, warp_row, length, width);
  ptx::cp_async_wait<0>();
  __syncthreads();

  Operand<1, 4> left, right;
  load_operand(left, q_tile + warp_row * COLUMNS);
  load_operand(right, dy_tile + warp_row * COLUMNS);
  Statistics own[1][2];
  own_rows(own, statistics + warp_row);
  Sums<1, 8> dq = {};
  for (int key = 0; warp_row < length && key < head.keys; key += SLICE)
    query_grad(dq, left, right, own, k_tile + key * COLUMNS, v_tile + key * COLUMNS, head.keys - key, scale2);
  scale_rows(dq, score_scale, 16);
  Operand<1, 4> dq_rows;
  to_bf16(dq_rows, dq);

  load_operand(left, k_tile + warp_row * COLUMNS);
  load_operand(right, v_tile + warp_row * COLUMNS);
  Sums<1, 8> dk = {}, dv = {};
  for (int row = 0; warp_row < head.keys && row < length; row += SLICE)
    key_grad(dk, dv, left, right, q_tile + row * COLUMNS, dy_tile + row * COLUMNS, statistics + row, scale2);
  scale_rows(dk, score_scale, head.keys - warp_row);
  to_bf16(left, dk);
  scale_rows(dv, 1.f, head.keys - warp_row);
  to_bf16(right, dv);

  __syncthreads();  // every warp has read the tiles
  store_rows(dqkv + head.q, head.stride, warp_row, length, width, dq_rows, q_tile + warp_row * COLUMNS);
  store_rows(dqkv + head.k, head.stride, warp_row, length, width, left, k_tile + warp_row * COLUMNS);
  store_rows(dqkv + head.v, head.stride, warp_row, length, width, right, v_tile + warp_row * COLUMNS);
}
EMU_KERNEL(attention_grad)
