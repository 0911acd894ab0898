// Attention per head over the first lengths[b] keys of long sequences, forward, on Hopper, for heads of width 64
// (the schedule is FlashAttention-3's, without causal masks):
//
//   s = scale q k^T    p = softmax(s)    y = p v
//
// Queries, keys and values are read where a linear layer left them, [B, L, 3, H, 64] in bf16. The grid is
// [blocks of 256 queries, H, B]. One thread loads by TMA: the queries once, then keys and values in blocks of
// 64 through a ring. Four warpgroups own 64 queries each: scores by wgmma from shared memory, weights as the
// next product's left operand straight from the registers that held the scores. While the tensor cores weigh
// the values of one block, the exponentials of the next are taken. A turn of a warpgroup, scores, maxima, exponentials and
// sums, is a chain of waits: four warpgroups fill each other's, two do not, and with blocks of 64 keys there are
// registers for four.
//
// Bound by issue slots (about 305 instructions a warp and block: 4.8 cycles of a multiprocessor a query), the tensor
// cores (4 x 64 x 64 FLOP a query and block: 4 cycles at 4096 a cycle) and as much by the exponentials (64 a query and
// block: 4 cycles at 16 a cycle).
//
// Rows past the end of a sequence arrive as zeros. Keys that do not count have no weight; as their values are
// multiplied by it, they have to be numbers. Exponentials are base 2, with log2(e) in the scale; statistics are
// f32; weights are rounded to bf16 as operands.
#include "attention_sm90.cuh"

using namespace attn;
using namespace hopper;

namespace {

constexpr int GROUPS = 4, QUERIES = GROUPS * 64, KEYS = 64, STAGES = 6;

struct Shared {
  bf16 queries[QUERIES * HEAD_WIDTH];
  Ring<KEYS, STAGES> ring;  // keys and values
  uint64_t queries_full;
};

__device__ __forceinline__ void produce(
    Shared* shared, const TensorMap* qkv, int first, const uint32_t* __restrict__ lengths, int length) {
  const int heads = gridDim.y, h = blockIdx.y;
  const uint32_t barrier = ptx::smem_u32(&shared->queries_full);
  ptx::tma_prefetch_desc(qkv);
  ptx::mbar_arrive_expect_tx(barrier, sizeof(shared->queries));
  load_tile<KEYS, QUERIES>(shared->queries, {qkv, h * HEAD_WIDTH}, first, barrier);
  shared->ring.load_all({qkv, (heads + h) * HEAD_WIDTH}, {qkv, (2 * heads + h) * HEAD_WIDTH},
                        counted_keys(lengths, length));
}

__device__ __forceinline__ void consume(
    Shared* shared, const Head& head, const TensorMap* y, float* __restrict__ log_sum, int first, int length,
    float score_scale) {
  const uint32_t queries = ptx::smem_u32(shared->queries) + part() * SIXTY_FOUR_ROWS;
  ptx::mbar_wait(ptx::smem_u32(&shared->queries_full), 0);

  float sums[HEAD_WIDTH / 2] = {}, log_sums[2];
  attend<KEYS>(shared->ring, queries, head.keys, score_scale, sums, log_sums);
  const int row = first + warp_row();
  store_log_sums(log_sum + head.row, row, length, log_sums);
  ptx::bar_sync(1 + part(), WARPGROUP);  // the whole warpgroup is done with its queries
  const int h = blockIdx.y;
  store_sums({y, h * HEAD_WIDTH}, row, sums, 1.0f, shared->queries + warp_row() * HEAD_WIDTH);
  await_stores();
}

}  // namespace

extern "C" __global__ void __launch_bounds__((1 + GROUPS) * WARPGROUP, 1) attention_long(
    const __grid_constant__ TensorMap qkv,  // [B, L, 3 H 64], boxes of 64 rows of a head
    const __grid_constant__ TensorMap y,    // [B, L, H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,   // [B] or null
    float* __restrict__ log_sum,            // [B, H, L]
    int length, float score_scale) {
  DYN_SMEM(Shared, shared);
  if (threadIdx.x == 0) {
    ptx::mbar_init(ptx::smem_u32(&shared->queries_full), 1);
    shared->ring.init(GROUPS);
    ptx::mbar_fence_init();
  }
  __syncthreads();
  const int first = blockIdx.x * QUERIES;
  divide_work<GROUPS>([&] { produce(shared, &qkv, first, lengths, length); },
                      [&] {
                        const Head head = this_head(lengths, length, HEAD_WIDTH);
                        consume(shared, head, &y, log_sum, first, length, score_scale);
                      });
}
EMU_KERNEL(attention_long)
