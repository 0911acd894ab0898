// Attention per head over all keys of long sequences, forward, on Hopper, for heads of width 64 (the schedule is
// FlashAttention-3's, without causal masks):
//
//   s = scale q k^T    p = softmax(s)    y = p v
//
// Queries, keys and values are read where a linear layer left them, [B, L, 3, H, 64] in bf16. The grid is
// [blocks of 128 queries, H, B]. One thread loads by TMA: the queries once, then keys and values in blocks of
// 128 through a ring of stages. Two warpgroups own 64 queries each: scores by wgmma from shared memory,
// weights as the next product's left operand straight from the registers that held the scores. While the
// tensor cores weigh the values of one block, the exponentials of the next are taken; the two warpgroups fill
// what gaps are left.
//
// Bound by the tensor cores (4 x 128 x 64 FLOP a query and block: 64 cycles a query at 4096 a cycle, of two
// warpgroups at once) and by the exponentials (128 a query and block: 8 cycles at 16 a cycle).
//
// Rows past the end of a sequence arrive as zeros; keys there have no weight. Exponentials are base 2, with
// log2(e) in the scale; statistics are f32; weights are rounded to bf16 as operands.
#include "attention.cuh"

using namespace attn;

namespace {

constexpr int WARPGROUP = 128, CONSUMERS = 2, THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int QUERIES = CONSUMERS * 64, KEYS = 128, STAGES = 3;
constexpr int WIDTH = 64;  // of a head: a row is 128 bytes, one row of the swizzle's pattern
constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;

// In a tile, by bytes.
constexpr int EIGHT_ROWS = 1024, SIXTY_FOUR_ROWS = 8 * EIGHT_ROWS;

struct Shared {
  bf16 queries[QUERIES * WIDTH];
  struct {
    bf16 keys[KEYS * WIDTH], values[KEYS * WIDTH];
  } stages[STAGES];
  uint64_t queries_full, keys_full[STAGES], values_full[STAGES], empty[STAGES];
};

// Loads a tile of ROWS rows of one head's queries, keys or values: those at column `col`, from `row` on.
template <int ROWS>
__device__ __forceinline__ void load_tile(
    bf16 (&tile)[ROWS * WIDTH], uint64_t& full, const TensorMap* qkv, int col, int row, int sample) {
  const uint32_t barrier = ptx::smem_u32(&full);
  ptx::mbar_arrive_expect_tx(barrier, sizeof(tile));
  ptx::tma_load_3d(ptx::smem_u32(tile), qkv, col, row, sample, barrier);
}

// The stage and the parity of its phase for block number `block`.
__device__ __forceinline__ int stage_of(int block) {
  return block % STAGES;
}

__device__ __forceinline__ uint32_t parity_of(int block) {
  return block / STAGES % 2;
}

// Of a tile whose rows lie along the sum, or across it.
__device__ __forceinline__ uint64_t along(uint32_t tile, int step) {
  return ptx::desc_sw128(tile + step * 32, 16, EIGHT_ROWS);
}

__device__ __forceinline__ uint64_t across(uint32_t tile, int step) {
  return ptx::desc_sw128(tile + step * 2 * EIGHT_ROWS, SIXTY_FOUR_ROWS, EIGHT_ROWS);
}

// Begins s = q k^T for the warpgroup's 64 queries, once the keys of the block are there.
__device__ __forceinline__ void begin_scores(
    float (&s)[KEYS / 2], Shared* shared, uint32_t queries, int block) {
  ptx::mbar_wait(ptx::smem_u32(&shared->keys_full[stage_of(block)]), parity_of(block));
  const uint32_t keys = ptx::smem_u32(shared->stages[stage_of(block)].keys);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < WIDTH / 16; step++) {
    ptx::wgmma_bf16<KEYS>(s, along(queries, step), along(keys, step), step > 0);
  }
  ptx::wgmma_commit();
}

// Begins y += p v.
__device__ __forceinline__ void begin_values(
    float (&y)[WIDTH / 2], const uint32_t (&p)[KEYS / 16][4], Shared* shared, int block) {
  ptx::mbar_wait(ptx::smem_u32(&shared->values_full[stage_of(block)]), parity_of(block));
  const uint32_t values = ptx::smem_u32(shared->stages[stage_of(block)].values);
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < KEYS / 16; step++) {
    ptx::wgmma_bf16_from_registers<WIDTH, 1>(y, p[step], across(values, step), 1);
  }
  ptx::wgmma_commit();
}

// Of the two rows that a thread holds of its warpgroup's: the largest score so far, and the sum of this
// thread's weights.
struct Statistic {
  float best = -INFINITY, sum = 0.0f;
};

// Scores become weights, exp2(scale2 (s - the largest)). Returns what weights of blocks before have to be
// multiplied by. fmaxf passes over what is no number; the exponential does not, and the sum keeps it.
__device__ __forceinline__ float weigh(float (&s)[KEYS / 2], int half, Statistic& row, float scale2) {
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

__device__ __forceinline__ void produce(Shared* shared, const TensorMap* qkv, int first, int length) {
  const int heads = gridDim.y, h = blockIdx.y, sample = blockIdx.z;
  ptx::tma_prefetch_desc(qkv);
  load_tile<QUERIES>(shared->queries, shared->queries_full, qkv, h * WIDTH, first, sample);
  for (int block = 0; block * KEYS < length; block++) {
    const int stage = stage_of(block), from = block * KEYS;
    ptx::mbar_wait(ptx::smem_u32(&shared->empty[stage]), parity_of(block) ^ 1);
    auto& [keys, values] = shared->stages[stage];
    load_tile<KEYS>(keys, shared->keys_full[stage], qkv, (heads + h) * WIDTH, from, sample);
    load_tile<KEYS>(values, shared->values_full[stage], qkv, (2 * heads + h) * WIDTH, from, sample);
  }
}

__device__ __forceinline__ void give_back(Shared* shared, int block) {
  if (threadIdx.x % WARPGROUP == 0) ptx::mbar_arrive(ptx::smem_u32(&shared->empty[stage_of(block)]));
}

__device__ __forceinline__ void consume(
    Shared* shared, bf16* __restrict__ y, float* __restrict__ log_sum, int first, int length,
    float score_scale) {
  const Head head = this_head(nullptr, length, WIDTH);
  const int group = threadIdx.x / WARPGROUP - 1, warp_row = group * 64 + warp_id() % 4 * 16;
  const int blocks = (length + KEYS - 1) / KEYS;
  const float scale2 = score_scale * LOG2_E;
  const uint32_t queries = ptx::smem_u32(shared->queries) + group * SIXTY_FOUR_ROWS;
  ptx::mbar_wait(ptx::smem_u32(&shared->queries_full), 0);

  float s[KEYS / 2], sums[WIDTH / 2] = {};
  Statistic rows[2];
  uint32_t p[KEYS / 16][4];
  // Weights from scores, once those of the block before have been used: their registers and stage are free.
  const auto weigh_block = [&](int block) {
    float correction[2];
#pragma unroll
    for (int half = 0; half < 2; half++) correction[half] = weigh(s, half, rows[half], scale2);
    ptx::wgmma_wait<0>();
    if (block > 0) give_back(shared, block - 1);
#pragma unroll
    for (int i = 0; i < WIDTH / 2; i++) sums[i] *= correction[i / 2 % 2];
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) p[i / 4][i % 4] = pack(s[i * 2], s[i * 2 + 1]);
  };
  begin_scores(s, shared, queries, 0);
  ptx::wgmma_wait<0>();
  for (int block = 0; block < blocks - 1; block++) {
    weigh_block(block);
    begin_scores(s, shared, queries, block + 1);
    begin_values(sums, p, shared, block);
    ptx::wgmma_wait<1>();  // the scores
  }
#pragma unroll
  for (int i = 0; i < KEYS / 2; i++) {
    const int key = (blocks - 1) * KEYS + i / 4 * 8 + lane_id() % 4 * 2 + i % 2;
    if (key >= length) s[i] = -INFINITY;
  }
  weigh_block(blocks - 1);
  begin_values(sums, p, shared, blocks - 1);
  ptx::wgmma_wait<0>();

  Operand<1, 4> out;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float total = row_sum(rows[half].sum), inverse = 1.0f / total;
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++) {
      const int i = n * 4 + half * 2;
      out[0][n / 2][n % 2 * 2 + half] = pack(sums[i] * inverse, sums[i + 1] * inverse);
    }
    const int row = first + warp_row + half * 8 + lane_id() / 4;
    if (lane_id() % 4 == 0 && row < length) {
      log_sum[head.row + row] = rows[half].best * score_scale + logf(total);
    }
  }
  // By way of the queries' rows, which the whole warpgroup has to be done with.
  ptx::bar_sync(1 + group, WARPGROUP);
  bf16* const tile = shared->queries + warp_row * WIDTH;
  store_rows(y + head.y, head.y_stride, first + warp_row, length, WIDTH, out, tile);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_long(
    const __grid_constant__ TensorMap qkv,  // [B, L, 3 H 64], boxes of 128 rows of a head
    bf16* __restrict__ y,                   // [B, L, H, 64]
    float* __restrict__ log_sum,            // [B, H, L]
    int length, float score_scale) {
  DYN_SMEM(Shared, shared);
  if (threadIdx.x == 0) {
    ptx::mbar_init(ptx::smem_u32(&shared->queries_full), 1);
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
      ptx::mbar_init(ptx::smem_u32(&shared->keys_full[stage]), 1);
      ptx::mbar_init(ptx::smem_u32(&shared->values_full[stage]), 1);
      ptx::mbar_init(ptx::smem_u32(&shared->empty[stage]), CONSUMERS);
    }
    ptx::mbar_fence_init();
  }
  __syncthreads();
  const int first = blockIdx.x * QUERIES;
  if (warp_id() / 4 == 0) {
    ptx::setmaxnreg_dec<PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) produce(shared, &qkv, first, length);
  } else {
    ptx::setmaxnreg_inc<CONSUMER_REGISTERS>();
    consume(shared, y, log_sum, first, length, score_scale);
  }
}
EMU_KERNEL(attention_long)
