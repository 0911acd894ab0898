// Rows of tokens from one order into another: embed, append and gather, and their gradients.
//
// All are copies, bound by memory: each row is read once and written once, 2 bytes an element each way. A
// warp takes WARP_COLS columns of ROWS rows, a vector of 8 elements a lane and row, with the loads of all
// rows under way before the first is used; consecutive warps take consecutive columns. Each lane looks up one of
// the rows for all, as divisions for each row would take longer than its memory. Rows are a multiple of 8 long.
// Positions are a table [T, D] in f32, 4 bytes an element from L2. With a class token (c = 1, else 0) the first row
// is its own.
//
// Of the instructions that a multiprocessor of an H200 has time for while memory works, a warp takes 38 % to
// embed, 17 % to gather, 65 % to append where three of four rows are mask tokens, 46 % in the gradient of that.
//
// Sums over rows (the gradients of the class token and of the mask token) have a fixed order.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 8;  // of a block
constexpr int ROWS = 4;
constexpr uint32_t ABSENT = 0xffffffff;  // an id that stands for no row

// What this warp takes of a matrix: ROWS rows from `row`, of which this lane looks up `own`, and this lane 8 columns
// from `col`, none where that is `dim` or more.
struct Share {
  int row, col;
  uint32_t own;
};

__device__ __forceinline__ Share share(int rows, int dim, uint32_t block) {
  const uint32_t pieces = (dim + WARP_COLS - 1) / WARP_COLS;
  const uint32_t piece = block * WARPS + warp_id();
  const int row = piece / pieces * ROWS, col = piece % pieces * WARP_COLS + 8 * lane_id();
  return {row, row < rows ? col : dim, static_cast<uint32_t>(min(row + lane_id() % ROWS, rows - 1))};
}

// This warp's rows of y [rows, dim] become those of x that the lanes have looked up; 0 for less than 0. Past the end
// it copies the last row again, which costs less than branches between the loads.
__device__ __forceinline__ void copy_rows(const bf16* __restrict__ x, bf16* __restrict__ y, int rows,
                                          uint32_t dim, const Share& share, int looked_up) {
  int source[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) source[r] = __shfl_sync(~0u, looked_up, r);
  if (share.col >= dim) return;
  uint4 from[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const uint32_t row = source[r];
    from[r] = source[r] < 0 ? zeros() : load_once(x + static_cast<size_t>(row) * dim + share.col);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const uint32_t row = min(share.row + r, rows - 1);
    store(y + static_cast<size_t>(row) * dim + share.col, from[r]);
  }
}

// A row of x, or, as ~row, one of a table in f32, and its position.
struct Token {
  int source;
  uint32_t place;
};

// This warp's rows of y [rows, dim] become those that the lanes have looked up, with their positions.
__device__ __forceinline__ void add_positions(
    const bf16* __restrict__ x, const float* __restrict__ table, const float* __restrict__ pos,
    bf16* __restrict__ y, int rows, uint32_t dim, const Share& share, const Token& looked_up) {
  Token token[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    token[r] = {__shfl_sync(~0u, looked_up.source, r), __shfl_sync(~0u, looked_up.place, r)};
  }
  if (share.col >= dim) return;
  uint4 from[ROWS];
  float added[ROWS][8], at[ROWS][8];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const bool is_x = token[r].source >= 0;
    const uint32_t row = is_x ? token[r].source : ~token[r].source;
    const size_t source = static_cast<size_t>(row) * dim + share.col;
    from[r] = is_x ? load_once(x + source) : zeros();
    load(pos + static_cast<size_t>(token[r].place) * dim + share.col, at[r]);
#pragma unroll
    for (int i = 0; i < 8; i++) added[r][i] = 0;
    if (!is_x) load(table + source, added[r]);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    float sum[8];
    unpack(from[r], sum);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += added[r][i] + at[r][i];
    const uint32_t row = min(share.row + r, rows - 1);
    store(y + static_cast<size_t>(row) * dim + share.col, sum);
  }
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
  const int c = cls != nullptr, rows = batch * (c + kept);
  const Share mine = share(rows, dim, blockIdx.x);
  const int b = mine.own / (c + kept), i = mine.own - b * (c + kept) - c, source = b * kept + i;
  const Token token = i < 0 ? Token{~0, 0} : Token{source, c + ids[source]};
  add_positions(x, cls, pos, y, rows, dim, mine, token);
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
  const Share mine = share(rows, dim, blockIdx.x - sums);
  copy_rows(dy, dx, rows, dim, mine, mine.own + mine.own / kept + 1);
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
  const Share mine = share(rows, dim, blockIdx.x);
  const int b = mine.own / (c + length), i = mine.own - b * (c + length);
  const uint32_t id = i < c ? 0 : ids_shuffle[b * length + i - c];
  const int source = i < (visible ? static_cast<int>(visible[b]) : kept) ? b * kept + i : ~(id / kind);
  const Token token = {source, i < c ? i : c + id};
  add_positions(x, mask_token, pos, y, rows, dim, mine, token);
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
  const int rows = batch * (c + length), step = gridDim.x * WARPS * ROWS, mask = blockIdx.z;
  const int col = blockIdx.y * WARP_COLS + 8 * lane_id();
  float total[8] = {};
  for (int begin = (blockIdx.x * WARPS + warp_id()) * ROWS; begin < rows; begin += 32 / ROWS * step) {
    // Each lane looks up one of this warp's next 32 rows.
    const int own = begin + lane_id() / ROWS * step + lane_id() % ROWS;
    const uint32_t row = min(own, rows - 1);
    const int b = row / (c + length), i = row - b * (c + length);
    const uint32_t id = i < c ? 0 : ids_shuffle[b * length + i - c];
    const bool is_row = own < rows, is_kept = i < (visible ? static_cast<int>(visible[b]) : kept);
    const int place = is_row && mask == 0 && i < kept ? b * kept + i : -1;  // in dx; -1 for none of this block's
    const uint32_t copied = __ballot_sync(~0u, is_kept && place >= 0);
    const uint32_t summed = __ballot_sync(~0u, is_row && !is_kept && id / kind == mask);
    for (int n = 0; n < 32; n += ROWS) {
      const int first = begin + n / ROWS * step;
      if (first >= rows) break;
      uint4 from[ROWS];
      int to[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        to[r] = __shfl_sync(~0u, place, n + r);
        const bool is_read = (copied | summed) >> (n + r) & 1 && col < dim;
        from[r] = is_read ? load_once(dy + static_cast<size_t>(first + r) * dim + col) : zeros();
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        if (to[r] >= 0 && col < dim) {
          store(dx + static_cast<size_t>(to[r]) * dim + col, copied >> (n + r) & 1 ? from[r] : zeros());
        }
        if (!(summed >> (n + r) & 1)) continue;
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
  const Share mine = share(rows, dim, blockIdx.x);
  const uint32_t b = mine.own / count, id = ids ? ids[mine.own] : mine.own - b * count;
  copy_rows(x, y, rows, dim, mine, id == ABSENT ? -1 : static_cast<int>(b * length + skip + id));
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
