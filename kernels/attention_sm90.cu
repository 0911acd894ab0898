// Attention per head over the first lengths[b] keys of long sequences, forward, on Hopper, for heads of width 64
// (the schedule is FlashAttention-3's, without causal masks):
//
//   s = scale q k^T    p = softmax(s)    y = p v
//
// Queries, keys and values are read where a linear layer left them, [B, L, 3, H, 64] in bf16. The grid is
// [blocks of 128 queries, H, B]. One thread loads by TMA: the queries once, then keys and values in blocks of
// 128 through a ring. Two warpgroups own 64 queries each: scores by wgmma from shared memory, weights as the
// next product's left operand straight from the registers that held the scores. While the tensor cores weigh
// the values of one block, the exponentials of the next are taken; the two warpgroups fill what gaps are left.
//
// Bound by the tensor cores (4 x 128 x 64 FLOP a query and block: 8 cycles of a multiprocessor at 4096 a
// cycle) and as much by the exponentials (128 a query and block: 8 cycles at 16 a cycle).
//
// Rows past the end of a sequence arrive as zeros. Keys that do not count have no weight; as their values are
// multiplied by it, they have to be numbers. Exponentials are base 2, with log2(e) in the scale; statistics are
// f32; weights are rounded to bf16 as operands.
#include "attention_sm90.cuh"

using namespace attn;
using namespace hopper;

namespace {

constexpr int KEYS = 128, STAGES = 4;

struct Shared {
  bf16 queries[BLOCK_ROWS * HEAD_WIDTH];
  Ring<KEYS, STAGES> ring;  // keys and values
  uint64_t queries_full;
};

// Of the two rows that a thread holds: the largest score so far, and the sum of this thread's weights.
struct Row {
  float best = -INFINITY, sum = 0.0f;
};

// Scores become weights, exp2(scale2 (s - the largest)). Returns what weights of blocks before have to be
// multiplied by. fmaxf passes over what is no number; the exponential does not, and the sum keeps it.
__device__ __forceinline__ float weigh(float (&s)[KEYS / 2], int half, Row& row, float scale2) {
  float top = row.best;
#pragma unroll
  for (int n = 0; n < KEYS / 8; n++) {
    top = fmaxf(top, fmaxf(s[n * 4 + half * 2], s[n * 4 + half * 2 + 1]));
  }
  top = row_max(top);
  const float correction = ptx::exp2_approx((row.best - top) * scale2), shift = top * scale2;
  row.best = top;
  row.sum *= correction;
#pragma unroll
  for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
    for (int i = n * 4 + half * 2; i < n * 4 + half * 2 + 2; i++) {
      s[i] = ptx::exp2_approx(fmaf(s[i], scale2, -shift));
      row.sum += s[i];
    }
  }
  return correction;
}

__device__ __forceinline__ void produce(Shared* shared, const TensorMap* qkv, int first, int keys) {
  const int heads = gridDim.y, h = blockIdx.y;
  const uint32_t barrier = ptx::smem_u32(&shared->queries_full);
  ptx::tma_prefetch_desc(qkv);
  ptx::mbar_arrive_expect_tx(barrier, sizeof(shared->queries));
  load_tile<BLOCK_ROWS, BLOCK_ROWS>(shared->queries, {qkv, h * HEAD_WIDTH}, first, barrier);
  shared->ring.load_all({qkv, (heads + h) * HEAD_WIDTH}, {qkv, (2 * heads + h) * HEAD_WIDTH}, keys);
}

__device__ __forceinline__ void consume(
    Shared* shared, const Head& head, const TensorMap* y, float* __restrict__ log_sum, int first, int length,
    float score_scale) {
  const int blocks = (head.keys + KEYS - 1) / KEYS;
  const float scale2 = score_scale * LOG2_E;
  const uint32_t queries = ptx::smem_u32(shared->queries) + part() * SIXTY_FOUR_ROWS;
  auto& ring = shared->ring;
  ptx::mbar_wait(ptx::smem_u32(&shared->queries_full), 0);

  float s[KEYS / 2], sums[HEAD_WIDTH / 2] = {};
  Row rows[2];
  uint32_t p[KEYS / 16][4];
  const auto begin_scores = [&](int block) {
    const uint32_t keys = ring.first(block);
    ptx::wgmma_fence();
    begin_product<KEYS>(s, queries, keys);
    ptx::wgmma_commit();
  };
  const auto begin_values = [&](int block) {
    const uint32_t values = ring.second(block);
    ptx::wgmma_fence();
    begin_addition<KEYS>(sums, p, values);
    ptx::wgmma_commit();
  };
  float correction[2];
  const auto weigh_block = [&](int) {
#pragma unroll
    for (int half = 0; half < 2; half++) correction[half] = weigh(s, half, rows[half], scale2);
  };
  const auto hand_over = [&] {
#pragma unroll
    for (int i = 0; i < HEAD_WIDTH / 2; i++) sums[i] *= correction[i / 2 % 2];
    to_operand<KEYS>(p, s);
  };
  for_each_block(ring, blocks, begin_scores, weigh_block, hand_over, begin_values,
                 [&] { hopper::mask<KEYS>(s, (blocks - 1) * KEYS, head.keys); });

  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float total = row_sum(rows[half].sum);
    inverse[half] = blocks > 0 ? 1.0f / total : 0.0f;
    const int row = first + warp_row() + half * 8 + lane_id() / 4;
    if (lane_id() % 4 == 0 && row < length) {
      log_sum[head.row + row] = blocks > 0 ? rows[half].best * score_scale + logf(total) : 0.0f;
    }
  }
  ptx::bar_sync(1 + part(), WARPGROUP);  // the whole warpgroup is done with its queries
#pragma unroll
  for (int i = 0; i < HEAD_WIDTH / 2; i++) sums[i] *= inverse[i / 2 % 2];
  const int h = blockIdx.y, row = warp_row();
  store_sums({y, h * HEAD_WIDTH}, first + row, sums, 1.0f, shared->queries + row * HEAD_WIDTH);
  await_stores();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_long(
    const __grid_constant__ TensorMap qkv,  // [B, L, 3 H 64], boxes of 128 rows of a head
    const __grid_constant__ TensorMap y,    // [B, L, H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,   // [B] or null
    float* __restrict__ log_sum,            // [B, H, L]
    int length, float score_scale) {
  DYN_SMEM(Shared, shared);
  if (threadIdx.x == 0) {
    ptx::mbar_init(ptx::smem_u32(&shared->queries_full), 1);
    shared->ring.init();
    ptx::mbar_fence_init();
  }
  __syncthreads();
  const int first = blockIdx.x * BLOCK_ROWS;
  const Head head = this_head(lengths, length, HEAD_WIDTH);
  divide_work([&] { produce(shared, &qkv, first, head.keys); },
              [&] { consume(shared, head, &y, log_sum, first, length, score_scale); });
}
EMU_KERNEL(attention_long)
