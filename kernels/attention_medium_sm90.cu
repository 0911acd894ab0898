// Attention per head as attention.cu has it, forward and its gradient, over sequences of up to 320 tokens of heads of width
// 64 on Hopper: as in attention_short_sm90.cu a block has all of one head in shared memory, but warpgroups own strips of
// 64 rows and multiply by wgmma, which reads the others once for all 64. The grid is [1, H, B].
//
// Forward there is a warpgroup for each strip, up to five, which fill each other's waits. For the gradient a warpgroup
// has a strip's dq, then its dk and dv; three have the registers for that, and take one strip after the other.
//
// Bound by memory, 512 and 1024 bytes a token, at 300 tokens 8,300 and 16,600 cycles of a multiprocessor of an H200; close
// to it by the tensor cores, 6,400 and 22,400, and forward by exponentials, 6,400.
#include "attention_whole.cuh"

using namespace attn;
using namespace hopper;

namespace {

constexpr int STRIP = 64;
constexpr int GRADIENT_GROUPS = 3;

// Blocks of ROWS rows of two tiles that are there.
template <int ROWS>
struct Whole {
  uint32_t first_tile, second_tile;

  __device__ __forceinline__ Whole(const bf16* first, const bf16* second)
      : first_tile(ptx::smem_u32(first)), second_tile(ptx::smem_u32(second)) {}
  __device__ __forceinline__ uint32_t first(int block) const { return at(first_tile, block); }
  __device__ __forceinline__ uint32_t second(int block) const { return at(second_tile, block); }
  __device__ __forceinline__ void give_back(int) const {}

 private:
  __device__ __forceinline__ static uint32_t at(uint32_t tile, int block) {
    return tile + block * (ROWS / 8) * EIGHT_ROWS;
  }
};

__device__ __forceinline__ int warpgroup() {
  return warp_id() / 4;
}

// Of this warpgroup: all its warps are done with a strip.
__device__ __forceinline__ void sync_warpgroup() {
  ptx::bar_sync(1 + warpgroup(), WARPGROUP);
}

}  // namespace

// Dynamic shared memory: tiles of q, later of y, of k and of v, and a barrier.
extern "C" __global__ void __launch_bounds__(640, 1) attention_medium(
    const __grid_constant__ TensorMap qkv,  // [B, L, 3 H 64], boxes of all rows of a head, or of half of them
    const __grid_constant__ TensorMap y,    // [B, L, H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,   // [B] or null
    float* __restrict__ log_sum,            // [B, H, L]
    int length, float score_scale) {
  constexpr int KEYS = 32;
  DYN_SMEM(bf16, memory);
  const Tiles tiles(memory, length, STRIP);
  const int heads = gridDim.y, h = blockIdx.y, row = warp_id() * 16;
  tiles.begin_load<3>([&](int i) { return Columns{&qkv, (i * heads + h) * HEAD_WIDTH}; });
  const Head head = this_head(lengths, length, HEAD_WIDTH);
  tiles.await<3>();

  const Whole<KEYS> keys(tiles[1], tiles[2]);
  const uint32_t queries = ptx::smem_u32(tiles[0]) + warpgroup() * SIXTY_FOUR_ROWS;
  float sums[HEAD_WIDTH / 2] = {}, log_sums[2];
  attend<KEYS>(keys, queries, head.keys, score_scale, sums, log_sums);
  store_log_sums(log_sum + head.row, row, length, log_sums);
  sync_warpgroup();
  store_sums({&y, h * HEAD_WIDTH}, row, sums, 1.0f, tiles[0] + row * HEAD_WIDTH);
  await_stores();
}
EMU_KERNEL(attention_medium)

// Dynamic shared memory: tiles of q, of k and v, later of dk and dv, of dy and of y, later of dq; a barrier; the rows'
// statistics.
extern "C" __global__ void __launch_bounds__(GRADIENT_GROUPS * WARPGROUP, 1) attention_medium_grad(
    const __grid_constant__ TensorMap qkv,      // [B, L, 3 H 64], boxes of all rows of a head, or of half of them
    const __grid_constant__ TensorMap dy_rows,  // [B, L, H 64], the same
    const __grid_constant__ TensorMap y_rows,   // [B, L, H 64], the same
    const __grid_constant__ TensorMap dqkv,     // [B, L, 3 H 64], boxes of 16 rows
    const uint32_t* __restrict__ lengths,       // [B] or null
    const float* __restrict__ log_sum,          // [B, H, L]
    int length, float score_scale) {
  constexpr int KEYS = 64, QUERIES = 32;
  DYN_SMEM(bf16, memory);
  const Tiles tiles(memory, length, STRIP);
  const Head head = this_head(lengths, length, HEAD_WIDTH);
  const Statistics* const statistics =
      load_for_gradient(tiles, &qkv, &dy_rows, &y_rows, log_sum + head.row, length);
  const int heads = gridDim.y, h = blockIdx.y, warp_row = warp_id() % 4 * 16;
  const float scale2 = score_scale * LOG2_E;
  const auto strip_of = [&](int tile, int strip) { return ptx::smem_u32(tiles[tile]) + strip * SIXTY_FOUR_ROWS; };

  for (int strip = warpgroup(); strip * STRIP < length; strip += GRADIENT_GROUPS) {
    const int row = strip * STRIP + warp_row;
    Statistics own[1][2];
    own_rows(own, statistics + row);
    const Whole<KEYS> keys(tiles[K], tiles[V]);
    float dq[HEAD_WIDTH / 2] = {};
    hopper::query_grads<KEYS>(keys, strip_of(Q, strip), strip_of(DY, strip), own[0], head.keys, scale2, dq);
    store_sums({&dqkv, h * HEAD_WIDTH}, row, dq, score_scale, tiles[Y] + row * HEAD_WIDTH);
  }
  __syncthreads();  // nobody reads the keys and values of another's strip any more

  for (int strip = warpgroup(); strip * STRIP < length; strip += GRADIENT_GROUPS) {
    const int row = strip * STRIP + warp_row, at = row * HEAD_WIDTH;
    const Whole<QUERIES> queries(tiles[Q], tiles[DY]);
    const auto statistics_of = [&](int query) { return statistics[query]; };
    float dk[HEAD_WIDTH / 2] = {}, dv[HEAD_WIDTH / 2] = {};
    const int met = strip * STRIP < head.keys ? length : 0;
    hopper::key_grads<QUERIES>(
        queries, strip_of(K, strip), strip_of(V, strip), met, statistics_of, scale2, dk, dv);
    zero_rows(dk, head.keys - row);
    zero_rows(dv, head.keys - row);
    sync_warpgroup();
    store_sums({&dqkv, (heads + h) * HEAD_WIDTH}, row, dk, score_scale, tiles[K] + at);
    store_sums({&dqkv, (2 * heads + h) * HEAD_WIDTH}, row, dv, 1.0f, tiles[V] + at);
  }
  await_stores();
}
EMU_KERNEL(attention_medium_grad)
