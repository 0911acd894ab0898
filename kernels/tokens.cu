// Rows of tokens from one order into another: embed, restore and gather, and their gradients.
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

// y[b, i] = pos[i] + (x[b, s] if s < K' else mask_token), s = i for i < c and c + ids_restore[b, i - c]
// after. ROWS are samples here, so that pos and mask_token are read once for several.
extern "C" __global__ void __launch_bounds__(32 * WARPS) restore_tokens(
    const bf16* __restrict__ x,                // [B, K', D], K' = c + K
    const float* __restrict__ mask_token,      // [D]
    const float* __restrict__ pos,             // [c + L, D]
    const uint32_t* __restrict__ ids_restore,  // [B, L]
    bf16* __restrict__ y,                      // [B, c + L, D]
    int batch, int kept, int c, int length, int dim) {
  const auto [unit, col] = share(dim, blockIdx.x);
  const int i = unit / ROWS % (c + length), sample = unit / ROWS / (c + length) * ROWS;
  if (col >= dim || sample >= batch) return;

  uint4 from[ROWS];
  bool is_kept[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const size_t b = min(sample + r, batch - 1);
    const uint32_t source = i < c ? i : c + ids_restore[b * length + i - c];
    is_kept[r] = source < static_cast<uint32_t>(kept);
    from[r] = is_kept[r] ? load_once(x + (b * kept + source) * dim + col) : zeros();
  }
  float at[8], mask[8];
  load(pos + static_cast<size_t>(i) * dim + col, at);
  load(mask_token + col, mask);
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float token[8];
    unpack(from[r], token);
#pragma unroll
    for (int k = 0; k < 8; k++) token[k] = (is_kept[r] ? token[k] : mask[k]) + at[k];
    const size_t b = sample + r;
    if (b < batch) store(y + (b * (c + length) + i) * dim + col, token);
  }
}

// dx[b, s] = dy[b, i] where s < K' (each row of x once); dmask_token = sum of the other dy[b, i]. Blocks
// (part, columns) walk over all rows and leave their sums.
extern "C" __global__ void __launch_bounds__(32 * WARPS) restore_tokens_grad(
    const bf16* __restrict__ dy,               // [B, c + L, D]
    const uint32_t* __restrict__ ids_restore,  // [B, L]
    bf16* __restrict__ dx,                     // [B, K', D]
    float* __restrict__ parts,                 // [gridDim.x, D]
    int batch, int kept, int c, int length, int dim) {
  const int rows = batch * (c + length), col = blockIdx.y * WARP_COLS + 8 * lane_id();
  float total[8] = {};
  if (col < dim) {
    const int step = gridDim.x * WARPS * ROWS;
    for (int first = (blockIdx.x * WARPS + warp_id()) * ROWS; first < rows; first += step) {
      uint4 from[ROWS];
      uint32_t source[ROWS];
      size_t sample[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int row = min(first + r, rows - 1), i = row % (c + length) - c;
        sample[r] = row / (c + length);
        from[r] = load_once(dy + static_cast<size_t>(row) * dim + col);
        source[r] = i < 0 ? c + i : c + ids_restore[sample[r] * length + i];
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (first + r >= rows) break;
        if (source[r] < static_cast<uint32_t>(kept)) {
          store(dx + (sample[r] * kept + source[r]) * dim + col, from[r]);
        } else {
          float d[8];
          unpack(from[r], d);
#pragma unroll
          for (int k = 0; k < 8; k++) total[k] += d[k];
        }
      }
    }
  }
  const float sum = sum_over_warps<WARPS>(total);
  const int out = blockIdx.y * WARP_COLS + threadIdx.x;
  if (out < dim) parts[static_cast<size_t>(blockIdx.x) * dim + out] = sum;
}

extern "C" __global__ void __launch_bounds__(1024) restore_tokens_grad_sum(
    const float* __restrict__ parts,   // [count, D]
    float* __restrict__ dmask_token,  // [D]
    int count, int dim) {
  const float sum = sum_parts(parts, count, dim);
  const int col = 32 * blockIdx.x + lane_id();
  if (warp_id() == 0 && col < dim) dmask_token[col] = sum;
}

// y[b, i] = x[b, skip + ids[b, i]].
extern "C" __global__ void __launch_bounds__(32 * WARPS) gather_tokens(
    const bf16* __restrict__ x,        // [B, T, D]
    const uint32_t* __restrict__ ids,  // [B, M]
    bf16* __restrict__ y,              // [B, M, D]
    int batch, int length, int count, int skip, int dim) {
  const int rows = batch * count;
  const auto [first, col] = share(dim, blockIdx.x);
  if (col >= dim) return;
  uint4 from[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const int row = min(first + r, rows - 1);
    const size_t source = static_cast<size_t>(row / count) * length + skip + ids[row];
    from[r] = load(x + source * dim + col);
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
    const uint32_t* __restrict__ ids,  // [B, M]
    bf16* __restrict__ dx,             // [B, T, D]
    int length, int count, int skip, int dim) {
  __shared__ int source[WARPS * ROWS];  // the row of dy that becomes this row of dx, or -1
  const int first = blockIdx.x * WARPS * ROWS;
  if (threadIdx.x < WARPS * ROWS) source[threadIdx.x] = -1;
  __syncthreads();
  ids += static_cast<size_t>(blockIdx.y) * count;
  for (int i = threadIdx.x; i < count; i += 32 * WARPS) {
    const int row = skip + static_cast<int>(ids[i]) - first;
    if (row >= 0 && row < WARPS * ROWS) source[row] = i;
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
EMU_KERNEL(restore_tokens)
EMU_KERNEL(restore_tokens_grad)
EMU_KERNEL(restore_tokens_grad_sum)
EMU_KERNEL(gather_tokens)
EMU_KERNEL(gather_tokens_grad)
