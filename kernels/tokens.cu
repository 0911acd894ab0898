// Rows of tokens from one order into another: embed, append and gather, and their gradients.
//
// All are copies, bound by memory: each row is read once and written once, 2 bytes an element each way. A
// warp takes WARP_COLS columns of ROWS rows, a vector of 8 elements a lane and row, with the loads of all
// rows under way before the first is used; consecutive warps take consecutive columns. Rows are a multiple of
// 8 long. Positions are a table [T, D] in f32. With a class token (c = 1, else 0) the first row is its own.
//
// Sums over rows (the gradients of the class token and of the mask token) have a fixed order.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 8;  // of a block
constexpr int ROWS = 4;
constexpr uint32_t ABSENT = 0xffffffff;  // an id that stands for no row

// What this warp takes of a matrix with `dim` columns: ROWS rows from `row`; this lane 8 columns from `col`.
struct Share {
  int row, col;
};

__device__ __forceinline__ Share share(int dim, int block) {
  const int pieces = (dim + WARP_COLS - 1) / WARP_COLS;
  const int piece = block * WARPS + warp_id();
  return {piece / pieces * ROWS, piece % pieces * WARP_COLS + 8 * lane_id()};
}

}  // namespace

// y[b, c + i] = x[b, i] + pos[c + ids[b, i]], and before them cls + pos[0].
extern "C" __global__ void __launch_bounds__(32 * WARPS) embed_tokens(
    const bf16* __restrict__ x,        // [B, K, D]
    const float* __restrict__ cls,     // [D] or null
    const float* __restrict__ pos,     // [T, D]
    const uint32_t* __restrict__ ids,  // [B, K]
    bf16* __restrict__ y,              // [B, c + K, D]
    int batch, int kept, int dim) {
  const int c = cls != nullptr;
  const int rows = batch * (c + kept);
  const auto [first, col] = share(dim, blockIdx.x);
  if (col >= dim) return;

  uint4 from[ROWS];
  size_t place[ROWS];
  bool is_cls[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int row = min(first + r, rows - 1), b = row / (c + kept), i = row % (c + kept) - c;
    const size_t token = static_cast<size_t>(b) * kept + i;
    is_cls[r] = i < 0;
    from[r] = is_cls[r] ? zeros() : load_once(x + token * dim + col);
    place[r] = is_cls[r] ? 0 : c + ids[token];
  }
  float at[ROWS][8];
#pragma unroll
  for (int r = 0; r < ROWS; r++) load(pos + place[r] * dim + col, at[r]);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float token[8];
    unpack(from[r], token);
    if (is_cls[r]) load(cls + col, token);
#pragma unroll
    for (int i = 0; i < 8; i++) token[i] += at[r][i];
    const size_t row = first + r;
    if (row < rows) store(y + row * dim + col, token);
  }
}

// dx[b, i] = dy[b, 1 + i], dcls = sum over b of dy[b, 0]: the first blocks sum, each WARP_COLS columns.
extern "C" __global__ void __launch_bounds__(32 * WARPS) embed_tokens_grad(
    const bf16* __restrict__ dy,  // [B, 1 + K, D]
    bf16* __restrict__ dx,        // [B, K, D]
    float* __restrict__ dcls,     // [D]
    int batch, int kept, int dim) {
  const int sums = (dim + WARP_COLS - 1) / WARP_COLS;
  if (blockIdx.x < sums) {
    const int col = blockIdx.x * WARP_COLS + 8 * lane_id();
    const size_t sample = static_cast<size_t>(1 + kept) * dim;
    float total[8] = {};
    if (col < dim) add_rows(dy + col, warp_id(), batch, WARPS, sample, total);
    const float sum = sum_over_warps<WARPS>(total);
    const int out = blockIdx.x * WARP_COLS + threadIdx.x;
    if (out < dim) dcls[out] = sum;
    return;
  }

  const int rows = batch * kept;
  const auto [first, col] = share(dim, blockIdx.x - sums);
  if (col >= dim) return;
  uint4 from[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int row = min(first + r, rows - 1);
    from[r] = load_once(dy + static_cast<size_t>(row + row / kept + 1) * dim + col);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const size_t row = first + r;
    if (row < rows) store(dx + row * dim + col, from[r]);
  }
}

// y[b, i] = (i < visible[b] ? x[b, i] : mask_token[id / kind]) + pos[c + id] with id = ids_shuffle[b, i - c]; rows
// i < c are pos[i] + x[b, i].
extern "C" __global__ void __launch_bounds__(32 * WARPS) append_mask_tokens(
    const bf16* __restrict__ x,                // [B, K', D], K' = c + K
    const float* __restrict__ mask_token,      // [L / kind, D]
    const float* __restrict__ pos,             // [c + L, D]
    const uint32_t* __restrict__ ids_shuffle,  // [B, L]
    const uint32_t* __restrict__ visible,      // [B] or null: K'
    bf16* __restrict__ y,                      // [B, c + L, D]
    int batch, int kept, int c, int length, int kind, int dim) {
  const int rows = batch * (c + length);
  const auto [first, col] = share(dim, blockIdx.x);
  if (col >= dim) return;

  uint4 from[ROWS];
  int id[ROWS];  // less than 0 before the first token
  bool is_kept[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int row = min(first + r, rows - 1), b = row / (c + length), i = row % (c + length);
    is_kept[r] = i < (visible ? static_cast<int>(visible[b]) : kept);
    id[r] = i < c ? i - c : ids_shuffle[static_cast<size_t>(b) * length + i - c];
    from[r] = is_kept[r] ? load_once(x + (static_cast<size_t>(b) * kept + i) * dim + col) : zeros();
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float token[8], mask[8], at[8];
    unpack(from[r], token);
    load(mask_token + max(id[r], 0) / kind * dim + col, mask);
    load(pos + (c + id[r]) * dim + col, at);
#pragma unroll
    for (int k = 0; k < 8; k++) token[k] = (is_kept[r] ? token[k] : mask[k]) + at[k];
    const size_t row = first + r;
    if (row < rows) store(y + row * dim + col, token);
  }
}

// dx[b, i] = dy[b, i] where i < visible[b], 0 in its other rows; each mask token gets the sum of dy where it stands.
// Blocks (part, columns, mask token) walk over all rows and leave their sums; those of the first mask token write dx.
extern "C" __global__ void __launch_bounds__(32 * WARPS) append_mask_tokens_grad(
    const bf16* __restrict__ dy,               // [B, c + L, D]
    const uint32_t* __restrict__ ids_shuffle,  // [B, L]
    const uint32_t* __restrict__ visible,      // [B] or null: K'
    bf16* __restrict__ dx,                     // [B, K', D]
    float* __restrict__ parts,                 // [L / kind, gridDim.x, D]
    int batch, int kept, int c, int length, int kind, int dim) {
  const int rows = batch * (c + length), col = blockIdx.y * WARP_COLS + 8 * lane_id();
  const int mask = blockIdx.z;
  float total[8] = {};
  if (col < dim) {
    const int step = gridDim.x * WARPS * ROWS;
    for (int first = (blockIdx.x * WARPS + warp_id()) * ROWS; first < rows; first += step) {
      uint4 from[ROWS];
      int place[ROWS];  // in dx; -1 for none of this block's
      bool is_kept[ROWS], is_ours[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int row = min(first + r, rows - 1), b = row / (c + length), i = row % (c + length);
        const int id = i < c ? 0 : ids_shuffle[static_cast<size_t>(b) * length + i - c];
        const bool is_row = first + r < rows;
        is_kept[r] = i < (visible ? static_cast<int>(visible[b]) : kept);
        is_ours[r] = is_row && !is_kept[r] && id / kind == mask;
        place[r] = is_row && mask == 0 && i < kept ? b * kept + i : -1;
        const bool is_read = is_ours[r] || (is_kept[r] && place[r] >= 0);
        from[r] = is_read ? load_once(dy + static_cast<size_t>(row) * dim + col) : zeros();
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (place[r] >= 0) store(dx + static_cast<size_t>(place[r]) * dim + col, is_kept[r] ? from[r] : zeros());
        if (!is_ours[r]) continue;
        float d[8];
        unpack(from[r], d);
#pragma unroll
        for (int k = 0; k < 8; k++) total[k] += d[k];
      }
    }
  }
  const float sum = sum_over_warps<WARPS>(total);
  const int out = blockIdx.y * WARP_COLS + threadIdx.x;
  if (out < dim) parts[(static_cast<size_t>(mask) * gridDim.x + blockIdx.x) * dim + out] = sum;
}

extern "C" __global__ void __launch_bounds__(1024) append_mask_tokens_grad_sum(
    const float* __restrict__ parts,  // [M, count, D]
    float* __restrict__ dmask_token,  // [M, D]
    int count, int dim) {
  const float sum = sum_parts(parts + static_cast<size_t>(blockIdx.y) * count * dim, count, dim);
  const int col = 32 * blockIdx.x + lane_id();
  if (warp_id() == 0 && col < dim) dmask_token[static_cast<size_t>(blockIdx.y) * dim + col] = sum;
}

// y[b, i] = x[b, skip + ids[b, i]], 0 where the id is ABSENT; without ids they are one after the other.
extern "C" __global__ void __launch_bounds__(32 * WARPS) gather_tokens(
    const bf16* __restrict__ x,        // [B, T, D]
    const uint32_t* __restrict__ ids,  // [B, M] or null
    bf16* __restrict__ y,              // [B, M, D]
    int batch, int length, int count, int skip, int dim) {
  const int rows = batch * count;
  const auto [first, col] = share(dim, blockIdx.x);
  if (col >= dim) return;
  uint4 from[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int row = min(first + r, rows - 1);
    const uint32_t id = ids ? ids[row] : row % count;
    const size_t source = static_cast<size_t>(row / count) * length + skip + id;
    from[r] = id == ABSENT ? zeros() : load(x + source * dim + col);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const size_t row = first + r;
    if (row < rows) store(y + row * dim + col, from[r]);
  }
}

// dx[b, skip + ids[b, i]] = dy[b, i], all other rows 0. A block (rows, sample) writes WARPS ROWS rows: it
// looks through the sample's ids, none of which comes twice, for those that fall there.
extern "C" __global__ void __launch_bounds__(32 * WARPS) gather_tokens_grad(
    const bf16* __restrict__ dy,       // [B, M, D]
    const uint32_t* __restrict__ ids,  // [B, M] or null
    bf16* __restrict__ dx,             // [B, T, D]
    int length, int count, int skip, int dim) {
  __shared__ int source[WARPS * ROWS];  // the row of dy that becomes this row of dx, or -1
  const int first = blockIdx.x * WARPS * ROWS;
  if (threadIdx.x < WARPS * ROWS) source[threadIdx.x] = -1;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += 32 * WARPS) {
    const uint32_t id = ids ? ids[static_cast<size_t>(blockIdx.y) * count + i] : i, row = skip + id - first;
    if (id != ABSENT && row < WARPS * ROWS) source[row] = i;
  }
  __syncthreads();

  dy += static_cast<size_t>(blockIdx.y) * count * dim;
  dx += static_cast<size_t>(blockIdx.y) * length * dim;
  for (int col = 8 * lane_id(); col < dim; col += WARP_COLS) {
    uint4 from[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int i = source[warp_id() * ROWS + r];
      from[r] = i < 0 ? zeros() : load_once(dy + static_cast<size_t>(i) * dim + col);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int row = first + warp_id() * ROWS + r;
      if (row < length) store(dx + static_cast<size_t>(row) * dim + col, from[r]);
    }
  }
}

EMU_KERNEL(embed_tokens)
EMU_KERNEL(embed_tokens_grad)
EMU_KERNEL(append_mask_tokens)
EMU_KERNEL(append_mask_tokens_grad)
EMU_KERNEL(append_mask_tokens_grad_sum)
EMU_KERNEL(gather_tokens)
EMU_KERNEL(gather_tokens_grad)
