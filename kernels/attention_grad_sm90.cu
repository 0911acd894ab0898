// The gradient of attention_sm90.cu, as two kernels without atomics or partial sums, as in attention.cu:
//
//   dp = dy v^T    ds = p (dp - rowsum(dy y))    dq = scale ds k    dk = scale ds^T q    dv = p^T dy
//
// Blocks own 128 queries, or 128 keys, of one head, and stream the rows those meet through a ring: 128 keys and
// values, or 64 queries and dy. A warpgroup of 64 rows has scores and dp in registers at once, turns them into
// weights and the scores' gradient there, and hands these to the next products as left operands. The next
// block's scores are begun before them, so that the tensor cores are busy while exponentials are taken.
//
// The queries' kernel leaves the statistics of rows for the keys' one: log2 of the sum of exponentials, and
// rowsum(dy y). Bound by the tensor cores: 7 products of 64 x 128 x 64 for 64 rows and 128 others.
#include "attention_sm90.cuh"

using namespace attn;
using namespace hopper;

namespace {

template <class Ring>
struct Shared {
  Own own;
  Ring ring;

  __device__ __forceinline__ void init() {
    if (threadIdx.x == 0) {
      ptx::mbar_init(ptx::smem_u32(&own.full), 1);
      ring.init();
      ptx::mbar_fence_init();
    }
    __syncthreads();
  }
};

// --- Of queries --------------------------------------------------------------------------------------------

constexpr int KEYS = 128, KEY_STAGES = 4;

// Owned: queries and dy; in the ring: keys and values.
using SharedQ = Shared<Ring<KEYS, KEY_STAGES>>;

// Statistics of the two rows that a thread holds; the four threads of a row each add up 16 columns.
__device__ __forceinline__ void row_statistics(Statistics (&own)[2], const Head& head,
    const bf16* __restrict__ dy, const bf16* __restrict__ y, const float* __restrict__ log_sum,
    Statistics* __restrict__ statistics, int first, int length) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = first + warp_row() + half * 8 + lane_id() / 4;
    float delta = 0.0f;
    if (row < length) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const size_t at = head.y + static_cast<size_t>(row) * head.y_stride + (i * 4 + lane_id() % 4) * 8;
        float terms[8], other[8];
        load(dy + at, terms);
        load(y + at, other);
#pragma unroll
        for (int c = 0; c < 8; c++) terms[c] *= other[c];
        delta += sum(terms);
      }
    }
    delta = row_sum(delta);
    own[half] = make_float2(row < length ? log_sum[head.row + row] * LOG2_E : 0.0f, delta);
    if (row < length && lane_id() % 4 == 0) statistics[head.row + row] = own[half];
  }
}

__device__ __forceinline__ void query_grads(
    SharedQ* shared, const Head& head, const bf16* __restrict__ dy, const bf16* __restrict__ y,
    const float* __restrict__ log_sum, const TensorMap* dqkv, Statistics* __restrict__ statistics, int first,
    int length, float score_scale) {
  const uint32_t queries = ptx::smem_u32(shared->own.first) + part() * SIXTY_FOUR_ROWS;
  const uint32_t dy_rows = ptx::smem_u32(shared->own.second) + part() * SIXTY_FOUR_ROWS;
  Statistics own[2];
  row_statistics(own, head, dy, y, log_sum, statistics, first, length);
  ptx::mbar_wait(ptx::smem_u32(&shared->own.full), 0);

  float dq[HEAD_WIDTH / 2] = {};
  hopper::query_grads<KEYS>(shared->ring, queries, dy_rows, own, head.keys, score_scale * LOG2_E, dq);
  ptx::bar_sync(1 + part(), WARPGROUP);  // the whole warpgroup is done with its queries
  const int h = blockIdx.y, row = warp_row();
  store_sums({dqkv, h * HEAD_WIDTH}, first + row, dq, score_scale, shared->own.first + row * HEAD_WIDTH);
  await_stores();
}

// --- Of keys and values ------------------------------------------------------------------------------------

constexpr int QUERIES = 64, QUERY_STAGES = 4;

// Owned: keys and values; in the ring: queries and dy.
using SharedKV = Shared<Ring<QUERIES, QUERY_STAGES>>;

// The queries that a block of keys from `first` on meets: all, or none where no key of it counts.
__device__ __forceinline__ int queries_of(int keys, int first, int length) {
  return first < keys ? length : 0;
}

__device__ __forceinline__ void key_grads(
    SharedKV* shared, const Head& head, const Statistics* __restrict__ statistics, const TensorMap* dqkv,
    int first, int length, float score_scale) {
  const uint32_t keys = ptx::smem_u32(shared->own.first) + part() * SIXTY_FOUR_ROWS;
  const uint32_t values = ptx::smem_u32(shared->own.second) + part() * SIXTY_FOUR_ROWS;
  ptx::mbar_wait(ptx::smem_u32(&shared->own.full), 0);
  float dk[HEAD_WIDTH / 2] = {}, dv[HEAD_WIDTH / 2] = {};
  const auto statistics_of = [&](int query) {
    return query < length ? statistics[head.row + query] : Statistics{0.0f, 0.0f};
  };
  const int queries = queries_of(head.keys, first, length);
  hopper::key_grads<QUERIES>(
      shared->ring, keys, values, queries, statistics_of, score_scale * LOG2_E, dk, dv);
  ptx::bar_sync(1 + part(), WARPGROUP);  // the whole warpgroup is done with its keys and values
  const int heads = gridDim.y, h = blockIdx.y, row = warp_row(), at = row * HEAD_WIDTH;
  zero_rows(dk, head.keys - first - row);
  zero_rows(dv, head.keys - first - row);
  store_sums({dqkv, (heads + h) * HEAD_WIDTH}, first + row, dk, score_scale, shared->own.first + at);
  store_sums({dqkv, (2 * heads + h) * HEAD_WIDTH}, first + row, dv, 1.0f, shared->own.second + at);
  await_stores();
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_long_grad_q(
    const __grid_constant__ TensorMap qkv,      // [B, L, 3 H 64], boxes of 128 rows of a head
    const __grid_constant__ TensorMap dy_rows,  // [B, L, H 64], the same
    const __grid_constant__ TensorMap dqkv,     // [B, L, 3 H 64], boxes of 16 rows; the queries' third
    const uint32_t* __restrict__ lengths,       // [B] or null
    const bf16* __restrict__ dy,                // [B, L, H, 64]
    const bf16* __restrict__ y,                 // [B, L, H, 64]
    const float* __restrict__ log_sum,          // [B, H, L]
    Statistics* __restrict__ statistics,        // [B, H, L]
    int length, float score_scale) {
  DYN_SMEM(SharedQ, shared);
  shared->init();
  const int first = blockIdx.x * BLOCK_ROWS, heads = gridDim.y, h = blockIdx.y;
  divide_work(
      [&] {
        shared->own.load<BLOCK_ROWS>({&qkv, h * HEAD_WIDTH}, {&dy_rows, h * HEAD_WIDTH}, first);
        const Columns keys{&qkv, (heads + h) * HEAD_WIDTH}, values{&qkv, (2 * heads + h) * HEAD_WIDTH};
        shared->ring.load_all(keys, values, counted_keys(lengths, length));
      },
      [&] {
        const Head head = this_head(lengths, length, HEAD_WIDTH);
        query_grads(shared, head, dy, y, log_sum, &dqkv, statistics, first, length, score_scale);
      });
}
EMU_KERNEL(attention_long_grad_q)

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_long_grad_kv(
    const __grid_constant__ TensorMap qkv,      // [B, L, 3 H 64], boxes of 64 rows of a head
    const __grid_constant__ TensorMap dy_rows,  // [B, L, H 64], the same
    const __grid_constant__ TensorMap dqkv,     // [B, L, 3 H 64], boxes of 16 rows; keys' and values' thirds
    const uint32_t* __restrict__ lengths,       // [B] or null
    const Statistics* __restrict__ statistics,  // [B, H, L]
    int length, float score_scale) {
  DYN_SMEM(SharedKV, shared);
  shared->init();
  const int first = blockIdx.x * BLOCK_ROWS, heads = gridDim.y, h = blockIdx.y;
  divide_work(
      [&] {
        const Columns keys{&qkv, (heads + h) * HEAD_WIDTH}, values{&qkv, (2 * heads + h) * HEAD_WIDTH};
        shared->own.load<QUERIES>(keys, values, first);
        const int queries = queries_of(counted_keys(lengths, length), first, length);
        shared->ring.load_all({&qkv, h * HEAD_WIDTH}, {&dy_rows, h * HEAD_WIDTH}, queries);
      },
      [&] {
        const Head head = this_head(lengths, length, HEAD_WIDTH);
        key_grads(shared, head, statistics, &dqkv, first, length, score_scale);
      });
}
EMU_KERNEL(attention_long_grad_kv)
