// The words that attention on Hopper is written in: tiles of one head that TMA brings, a ring of them, and what a
// warpgroup makes of them.
//
// Heads are 64 wide: a row of a tile is 128 bytes, one row of the swizzle's pattern. A warpgroup has 64 rows. Sums lie as
// wgmma leaves them (ptx.cuh): of each 8 columns a thread holds four, row lane / 4 at columns lane % 4 * 2 and
// the next, then row lane / 4 + 8 at the same. Sums of 16 columns, rounded to bf16, are what the thread holds
// of a product's left operand.
#pragma once
#include "attention.cuh"
#include "hopper.cuh"

namespace hopper {

using attn::LOG2_E;
using attn::row_max;
using attn::row_sum;
using attn::Statistics;

constexpr int HEAD_WIDTH = 64;

// --- Tiles -------------------------------------------------------------------------------------------------

// The columns of a tensor [B, L, columns] that one head has, from `col` on, in boxes of BOX rows.
struct Columns {
  const TensorMap* map;
  int col;
};

// Begins to load rows from `row` on of this block's sequence, zeros past its end.
template <int BOX, int ROWS>
__device__ __forceinline__ void load_tile(
    bf16 (&tile)[ROWS * HEAD_WIDTH], const Columns& from, int row, uint32_t barrier) {
#pragma unroll
  for (int i = 0; i < ROWS; i += BOX) {
    ptx::tma_load_3d(ptx::smem_u32(tile + i * HEAD_WIDTH), from.map, from.col, row + i, blockIdx.z, barrier);
  }
}

// What the block owns: two tiles that come together. (Tiles begin at multiples of the swizzle's pattern.)
struct alignas(EIGHT_ROWS) Own {
  bf16 first[BLOCK_ROWS * HEAD_WIDTH], second[BLOCK_ROWS * HEAD_WIDTH];
  uint64_t full;

  template <int BOX>
  __device__ __forceinline__ void load(const Columns& a, const Columns& b, int row) {
    const uint32_t barrier = ptx::smem_u32(&full);
    ptx::mbar_arrive_expect_tx(barrier, sizeof(first) + sizeof(second));
    load_tile<BOX, BLOCK_ROWS>(first, a, row, barrier);
    load_tile<BOX, BLOCK_ROWS>(second, b, row, barrier);
  }
};

// Blocks of ROWS rows of two tensors, one after the other, through STAGES places. `readers` warpgroups read each.
template <int ROWS, int STAGES>
struct alignas(EIGHT_ROWS) Ring {
  bf16 first_tiles[STAGES][ROWS * HEAD_WIDTH], second_tiles[STAGES][ROWS * HEAD_WIDTH];
  uint64_t first_full[STAGES], second_full[STAGES], empty[STAGES];

  __device__ __forceinline__ void init(int readers = CONSUMERS) {
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
      ptx::mbar_init(ptx::smem_u32(&first_full[stage]), 1);
      ptx::mbar_init(ptx::smem_u32(&second_full[stage]), 1);
      ptx::mbar_init(ptx::smem_u32(&empty[stage]), readers);
    }
  }

  // Loads all blocks of `length` rows, each once its stage is free.
  __device__ __forceinline__ void load_all(const Columns& a, const Columns& b, int length) {
    for (int block = 0; block * ROWS < length; block++) {
      const int stage = block % STAGES, row = block * ROWS;
      ptx::mbar_wait(ptx::smem_u32(&empty[stage]), parity(block) ^ 1);
      begin(first_tiles[stage], first_full[stage], a, row);
      begin(second_tiles[stage], second_full[stage], b, row);
    }
  }

  // The tile of a block, once it is there.
  __device__ __forceinline__ uint32_t first(int block) {
    ptx::mbar_wait(ptx::smem_u32(&first_full[block % STAGES]), parity(block));
    return ptx::smem_u32(first_tiles[block % STAGES]);
  }
  __device__ __forceinline__ uint32_t second(int block) {
    ptx::mbar_wait(ptx::smem_u32(&second_full[block % STAGES]), parity(block));
    return ptx::smem_u32(second_tiles[block % STAGES]);
  }

  // This warpgroup is done with a block.
  __device__ __forceinline__ void give_back(int block) {
    if (threadIdx.x % WARPGROUP == 0) ptx::mbar_arrive(ptx::smem_u32(&empty[block % STAGES]));
  }

 private:
  __device__ __forceinline__ static uint32_t parity(int block) { return block / STAGES % 2; }

  __device__ __forceinline__ static void begin(
      bf16 (&tile)[ROWS * HEAD_WIDTH], uint64_t& full, const Columns& from, int row) {
    const uint32_t barrier = ptx::smem_u32(&full);
    ptx::mbar_arrive_expect_tx(barrier, sizeof(tile));
    load_tile<ROWS, ROWS>(tile, from, row, barrier);
  }
};

// --- Products of a warpgroup -------------------------------------------------------------------------------

// sum = a b^T, [64, N], over the width: a is 64 rows of a tile, b N rows.
template <int N>
__device__ __forceinline__ void begin_product(float (&sum)[N / 2], uint32_t a, uint32_t b) {
#pragma unroll
  for (int step = 0; step < HEAD_WIDTH / 16; step++) {
    ptx::wgmma_bf16<N>(sum, along(a, step), along(b, step), step > 0);
  }
}

// sum += a b, [64, width], over ROWS rows of the tile b.
template <int ROWS>
__device__ __forceinline__ void begin_addition(
    float (&sum)[HEAD_WIDTH / 2], const uint32_t (&a)[ROWS / 16][4], uint32_t b) {
#pragma unroll
  for (int step = 0; step < ROWS / 16; step++) {
    ptx::wgmma_bf16_from_registers<HEAD_WIDTH, 1>(sum, a[step], across(b, step), 1);
  }
}

// Goes through the blocks of a ring: begins a block's scores, weighs them, and begins the sums that take the
// weights. The next block's scores are begun before this one's sums, and while the tensor cores add these up,
// exponentials are taken; the last block's scores are masked before they are weighed. (As the loop's last turn by
// a condition, the mask would make ptxas wait after every product. The branch of the wait for the next block keeps
// it from waiting for the sums before the exponentials.)
template <class Ring, class Scores, class Weigh, class HandOver, class AddUp, class Mask>
__device__ __forceinline__ void for_each_block(
    Ring& ring, int blocks, const Scores& begin_scores, const Weigh& weigh, const HandOver& hand_over,
    const AddUp& begin_sums, const Mask& mask_last) {
  if (blocks == 0) return;
  // Weights become an operand once those of the block before have been used: their registers and stage are free.
  const auto take_weights = [&](int block) {
    weigh(block);
    ring.first(min(block + 1, blocks - 1));
    ptx::wgmma_wait<0>();
    if (block > 0) ring.give_back(block - 1);
    hand_over();
  };
  begin_scores(0);
  ptx::wgmma_wait<0>();
  for (int block = 0; block < blocks - 1; block++) {
    take_weights(block);
    begin_scores(block + 1);
    begin_sums(block);
    ptx::wgmma_wait<1>();  // the scores
  }
  mask_last();
  take_weights(blocks - 1);
  begin_sums(blocks - 1);
  ptx::wgmma_wait<0>();
}

// Sums as the left operand of the next product.
template <int N>
__device__ __forceinline__ void to_operand(uint32_t (&a)[N / 16][4], const float (&sum)[N / 2]) {
#pragma unroll
  for (int i = 0; i < N / 4; i++) a[i / 4][i % 4] = pack(sum[i * 2], sum[i * 2 + 1]);
}

// Of columns from `from` on, the scores of those from `length` on become scores of no weight.
template <int N>
__device__ __forceinline__ void mask(float (&scores)[N / 2], int from, int length) {
#pragma unroll
  for (int i = 0; i < N / 2; i++) {
    if (from + i / 4 * 8 + lane_id() % 4 * 2 + i % 2 >= length) scores[i] = -INFINITY;
  }
}

// --- What a warpgroup makes of 64 rows -------------------------------------------------------------------------

// Of the two rows that a thread holds: the largest score so far, and the sum of this thread's weights.
struct Row {
  float best = -INFINITY, sum = 0.0f;
};

// Scores become weights, exp2(scale2 (s - the largest)). Returns what weights of blocks before have to be
// multiplied by. fmaxf passes over what is no number; the exponential does not, and the sum keeps it.
template <int KEYS>
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

// Of 64 queries: their weights of `keys` keys times the values that come with these in blocks of KEYS, and the logs
// of the sums of exponentials of the two rows that a thread holds. `sums` begin as zeros.
template <int KEYS, class Ring>
__device__ __forceinline__ void attend(
    Ring& ring, uint32_t queries, int keys, float score_scale, float (&sums)[HEAD_WIDTH / 2],
    float (&log_sums)[2]) {
  const int blocks = (keys + KEYS - 1) / KEYS;
  const float scale2 = score_scale * LOG2_E;
  float s[KEYS / 2], correction[2];
  Row rows[2];
  uint32_t p[KEYS / 16][4];
  const auto begin_scores = [&](int block) {
    const uint32_t tile = ring.first(block);
    ptx::wgmma_fence();
    begin_product<KEYS>(s, queries, tile);
    ptx::wgmma_commit();
  };
  const auto begin_values = [&](int block) {
    const uint32_t tile = ring.second(block);
    ptx::wgmma_fence();
    begin_addition<KEYS>(sums, p, tile);
    ptx::wgmma_commit();
  };
  const auto weigh_block = [&](int) {
#pragma unroll
    for (int half = 0; half < 2; half++) correction[half] = weigh<KEYS>(s, half, rows[half], scale2);
  };
  const auto hand_over = [&] {
#pragma unroll
    for (int i = 0; i < HEAD_WIDTH / 2; i++) sums[i] *= correction[i / 2 % 2];
    to_operand<KEYS>(p, s);
  };
  for_each_block(ring, blocks, begin_scores, weigh_block, hand_over, begin_values,
                 [&] { mask<KEYS>(s, (blocks - 1) * KEYS, keys); });
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float total = row_sum(rows[half].sum), inverse = blocks > 0 ? 1.0f / total : 0.0f;
    log_sums[half] = blocks > 0 ? rows[half].best * score_scale + logf(total) : 0.0f;
#pragma unroll
    for (int i = half * 2; i < HEAD_WIDTH / 2; i += 4) {
      sums[i] *= inverse;
      sums[i + 1] *= inverse;
    }
  }
}

// Leaves those of a warp's 16 rows, from `row` on.
__device__ __forceinline__ void store_log_sums(
    float* __restrict__ log_sum, int row, int length, const float (&log_sums)[2]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int at = row + half * 8 + lane_id() / 4;
    if (lane_id() % 4 == 0 && at < length) log_sum[at] = log_sums[half];
  }
}

// Of 64 queries, with the statistics of the two rows that a thread holds: dq without the scale, of `keys` keys that come
// with their values in blocks of KEYS. dq begins as zeros.
template <int KEYS, class Ring>
__device__ __forceinline__ void query_grads(
    Ring& ring, uint32_t queries, uint32_t dy_rows, const Statistics (&own)[2], int keys, float scale2,
    float (&dq)[HEAD_WIDTH / 2]) {
  const int blocks = (keys + KEYS - 1) / KEYS;
  float s[KEYS / 2], dp[KEYS / 2];
  uint32_t ds[KEYS / 16][4];
  const auto begin_scores = [&](int block) {
    const uint32_t tile = ring.first(block), values = ring.second(block);
    ptx::wgmma_fence();
    begin_product<KEYS>(s, queries, tile);
    begin_product<KEYS>(dp, dy_rows, values);
    ptx::wgmma_commit();
  };
  const auto begin_sums = [&](int block) {
    const uint32_t tile = ring.first(block);
    ptx::wgmma_fence();
    begin_addition<KEYS>(dq, ds, tile);
    ptx::wgmma_commit();
  };
  const auto score_grads = [&](int) {
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      const Statistics row = own[i / 2 % 2];
      s[i] = ptx::exp2_approx(fmaf(s[i], scale2, -row.x)) * (dp[i] - row.y);
    }
  };
  for_each_block(ring, blocks, begin_scores, score_grads, [&] { to_operand<KEYS>(ds, s); }, begin_sums,
                 [&] { mask<KEYS>(s, (blocks - 1) * KEYS, keys); });
}

// Of 64 keys and their values: dk without the scale, and dv, of `queries` queries that come with dy in blocks of QUERIES,
// whose statistics are `statistics_of(query)`, zeros beyond the length. Queries there are zeros too: their weights are
// finite, and they add nothing. dk and dv begin as zeros; of keys that do not count they may be anything, also no numbers.
template <int QUERIES, class Ring, class StatisticsOf>
__device__ __forceinline__ void key_grads(
    Ring& ring, uint32_t keys, uint32_t values, int queries, const StatisticsOf& statistics_of, float scale2,
    float (&dk)[HEAD_WIDTH / 2], float (&dv)[HEAD_WIDTH / 2]) {
  const int blocks = (queries + QUERIES - 1) / QUERIES;
  // Rows are keys here, columns queries.
  float s[QUERIES / 2], dp[QUERIES / 2];
  uint32_t p[QUERIES / 16][4], ds[QUERIES / 16][4];
  Statistics columns[QUERIES / 8][2];  // that a thread holds; on their way while scores are made
  const auto begin_scores = [&](int block) {
    const uint32_t tile = ring.first(block), dy_rows = ring.second(block);
    ptx::wgmma_fence();
    begin_product<QUERIES>(s, keys, tile);
    begin_product<QUERIES>(dp, values, dy_rows);
    ptx::wgmma_commit();
#pragma unroll
    for (int i = 0; i < QUERIES / 4; i++) {
      columns[i / 2][i % 2] = statistics_of(block * QUERIES + i / 2 * 8 + lane_id() % 4 * 2 + i % 2);
    }
  };
  const auto begin_sums = [&](int block) {
    const uint32_t tile = ring.first(block), dy_rows = ring.second(block);
    ptx::wgmma_fence();
    begin_addition<QUERIES>(dv, p, dy_rows);
    begin_addition<QUERIES>(dk, ds, tile);
    ptx::wgmma_commit();
  };
  const auto score_grads = [&](int) {
#pragma unroll
    for (int i = 0; i < QUERIES / 2; i++) {
      const Statistics column = columns[i / 4][i % 2];
      s[i] = ptx::exp2_approx(fmaf(s[i], scale2, -column.x));
      dp[i] = s[i] * (dp[i] - column.y);
    }
  };
  const auto hand_over = [&] {
    to_operand<QUERIES>(p, s);
    to_operand<QUERIES>(ds, dp);
  };
  for_each_block(ring, blocks, begin_scores, score_grads, hand_over, begin_sums, [] {});
}

// A warp's 16 rows from `valid` on become zero.
__device__ __forceinline__ void zero_rows(float (&sum)[HEAD_WIDTH / 2], int valid) {
#pragma unroll
  for (int i = 0; i < HEAD_WIDTH / 2; i++) {
    if (i / 2 % 2 * 8 + lane_id() / 4 >= valid) sum[i] = 0.0f;
  }
}

// --- To memory -------------------------------------------------------------------------------------------------

// Begins to store a warp's 16 rows of sums times `by` as rows from `row` on of these columns, those inside of the
// sequence, by way of 16 rows of a tile that nobody reads any more.
__device__ __forceinline__ void store_sums(
    const Columns& to, int row, const float* sum /* [HEAD_WIDTH / 2] */, float by, bf16* rows) {
#pragma unroll
  for (int i = 0; i < HEAD_WIDTH / 16; i++) {
    uint32_t pairs[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int at = (i * 4 + j) * 2;
      pairs[j] = pack(sum[at] * by, sum[at + 1] * by);
    }
    const int place = tile_at<HEAD_WIDTH>(lane_id() % 16, i * 2 + lane_id() / 16);
    ptx::stmatrix_x4(ptx::smem_u32(rows + place), pairs);
  }
  ptx::fence_proxy_async();
  __syncwarp();
  if (lane_id() == 0) {
    ptx::tma_store_3d(to.map, to.col, row, blockIdx.z, ptx::smem_u32(rows));
    ptx::tma_store_commit();
  }
}

// Waits until what this warp stores has been read: only then may the block end.
__device__ __forceinline__ void await_stores() {
  if (lane_id() == 0) ptx::tma_store_wait_read<0>();
}

}  // namespace hopper
