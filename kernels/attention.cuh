// The words attention.cu is written in: how rows of a head come and go, and what one warp multiplies.
//
// A tile in shared memory (tile.cuh) has 64 columns: a head's width, and zeros beyond it. A warp owns M
// strips of 16 rows. Of each 8 columns of a strip's sums a thread holds four, in mma's order: row lane / 4 at
// columns lane % 4 * 2 and the next, then row lane / 4 + 8 at the same. Sums of 16 columns, rounded to bf16,
// are exactly what the thread holds of an mma's left operand: weights go from one product to the next in
// registers.
//
// Where a function takes a tile, that may begin at any multiple of 8 rows of one: the pattern repeats there.
#pragma once
#include "ptx.cuh"
#include "tile.cuh"
#include "vec.cuh"

namespace attn {

constexpr int COLUMNS = 64;  // columns of a tile
constexpr int BLOCK = 64;  // rows of a tile that is streamed
constexpr float LOG2_E = 1.44269504f;

// Two streamed tiles that belong together: keys and values, or queries and dy.
struct Stage {
  bf16 first[BLOCK * COLUMNS], second[BLOCK * COLUMNS];
};

template <int M, int N>
using Sums = float[M][N][4];  // 16 M x 8 N
template <int M, int K>
using Operand = uint32_t[M][K][4];  // 16 M x 16 K

// One head of one sequence: where its first token lies, and how far the next.
struct Head {
  size_t q, k, v;  // in qkv and dqkv
  size_t y;        // in y and dy
  size_t row;      // in log_sum and statistics, whose tokens are side by side
  int stride;      // in qkv and dqkv
  int y_stride;    // in y and dy
  int keys;        // that count, 0 ..= length
};

// The keys that count of this block's sequence.
__device__ __forceinline__ int counted_keys(const uint32_t* __restrict__ lengths, int length) {
  return lengths ? (int)min(lengths[blockIdx.z], (uint32_t)length) : length;
}

__device__ __forceinline__ Head this_head(const uint32_t* __restrict__ lengths, int length, int width) {
  const int heads = gridDim.y, h = blockIdx.y, b = blockIdx.z, channels = heads * width;
  Head head;
  head.stride = 3 * channels;
  head.y_stride = channels;
  head.q = (size_t)b * length * head.stride + h * width;
  head.k = head.q + channels;
  head.v = head.k + channels;
  head.y = (size_t)b * length * channels + h * width;
  head.row = ((size_t)b * heads + h) * length;
  head.keys = counted_keys(lengths, length);
  return head;
}

// Starts to copy rows from .. from + rows of a head to a tile; rows from `valid` on and columns from `width`
// on become zero, so that what lies there, were it no number, cannot reach a sum.
__device__ __forceinline__ void load_rows(
    bf16* tile, const bf16* __restrict__ head, int stride, int from, int rows, int valid, int width) {
  const int chunk = threadIdx.x % 8;
  for (int r = threadIdx.x / 8; r < rows; r += blockDim.x / 8) {
    const bool in = from + r < valid && chunk * 8 < width;
    const bf16* source = head + (in ? (size_t)(from + r) * stride + chunk * 8 : 0);
    ptx::cp_async16(ptx::smem_u32(tile + tile_at<COLUMNS>(r, chunk)), source, in ? 16 : 0);
  }
}

// Sums as the left operand of the next product, or as rows to store.
template <int M, int N>
__device__ __forceinline__ void to_bf16(Operand<M, N / 2>& a, const Sums<M, N>& c) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        a[m][n / 2][n % 2 * 2 + half] = pack(c[m][n][half * 2], c[m][n][half * 2 + 1]);
}

// Stores a warp's rows as rows from .. from + 16 M of a head, those before `valid`, in 16-byte pieces, by way
// of rows of a tile that no other warp uses.
template <int M>
__device__ __forceinline__ void store_rows(
    bf16* __restrict__ head, int stride, int from, int valid, int width, const Operand<M, 4>& a, bf16* tile) {
  const int lane = lane_id();
  __syncwarp();  // the tile's rows have been read
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int r = m * 16 + half * 8 + lane / 4;
        bf16* at = tile + tile_at<COLUMNS>(r, n) + lane % 4 * 2;
        *vector_at<uint32_t>(at) = a[m][n / 2][n % 2 * 2 + half];
      }
  __syncwarp();
  const int chunk = lane % 8;
#pragma unroll
  for (int i = 0; i < 4 * M; i++) {
    const int r = i * 4 + lane / 8;
    if (from + r < valid && chunk * 8 < width)
      store(head + (size_t)(from + r) * stride + chunk * 8, load(tile + tile_at<COLUMNS>(r, chunk)));
  }
}

// a = 16 M rows of the tile.
template <int M>
__device__ __forceinline__ void load_operand(Operand<M, 4>& a, const bf16* tile) {
  const int lane = lane_id();
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const bf16* row = tile + tile_at<COLUMNS>(lane % 16, k * 2 + lane / 16) + m * 16 * COLUMNS;
      ptx::ldmatrix_x4(a[m][k], ptx::smem_u32(row));
    }
}

// Columns 8 n .. 8 n + 16 of c += a b, for one step of 16 along the sum.
template <int M, int N, int K>
__device__ __forceinline__ void multiply(
    Sums<M, N>& c, int n, const Operand<M, K>& a, int k, const uint32_t (&b)[4]) {
  const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
  for (int m = 0; m < M; m++) {
    ptx::mma_m16n8k16_bf16(c[m][n], a[m][k], left);
    ptx::mma_m16n8k16_bf16(c[m][n + 1], a[m][k], right);
  }
}

// c += a b^T, b = 8 N rows of the tile.
template <int M, int N>
__device__ __forceinline__ void multiply_nt(Sums<M, N>& c, const Operand<M, 4>& a, const bf16* tile) {
  const int lane = lane_id(), lane_row = lane / 16 * 8 + lane % 8;
#pragma unroll
  for (int k = 0; k < 4; k++)
#pragma unroll
    for (int n = 0; n < N; n += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, ptx::smem_u32(tile + tile_at<COLUMNS>(lane_row, k * 2 + lane / 8 % 2) + n * 8 * COLUMNS));
      multiply(c, n, a, k, b);
    }
}

// c += a b, a rounded to bf16, b = 8 N rows of the tile.
template <int M, int N>
__device__ __forceinline__ void multiply_nn(Sums<M, 8>& c, const Sums<M, N>& a, const bf16* tile) {
  const int lane = lane_id();
#pragma unroll
  for (int k = 0; k < N / 2; k++) {
    Operand<M, 1> left;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float* two = a[m][k * 2 + i / 2] + i % 2 * 2;
        left[m][0][i] = pack(two[0], two[1]);
      }
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, ptx::smem_u32(tile + tile_at<COLUMNS>(lane % 16, n + lane / 16) + k * 16 * COLUMNS));
      multiply(c, n, left, 0, b);
    }
  }
}

// Scores of keys from `keys` on become those of keys of no weight.
template <int M, int N>
__device__ __forceinline__ void mask(Sums<M, N>& scores, int keys) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (n * 8 + lane_id() % 4 * 2 + i % 2 >= keys) scores[m][n][i] = -INFINITY;
}

// c = c times `by` in the first `valid` rows, zero in those after.
template <int M>
__device__ __forceinline__ void scale_rows(Sums<M, 8>& c, float by, int valid) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        c[m][n][i] = m * 16 + i / 2 * 8 + lane_id() / 4 < valid ? c[m][n][i] * by : 0.f;
}

// Over the four threads that hold a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// --- Forward -----------------------------------------------------------------------------------------------

// Of the rows that a thread holds: the largest score so far, and the sum of the weights of this thread's columns.
template <int M>
struct Softmax {
  float best[M][2], sum[M][2];

  __device__ __forceinline__ Softmax() {
#pragma unroll
    for (int i = 0; i < 2 * M; i++) best[i / 2][i % 2] = -INFINITY, sum[i / 2][i % 2] = 0.f;
  }

  // Scores become weights, exp2(scale2 (s - the largest)), and what earlier ones have added to `out` is as if they
  // had known the largest too. fmaxf passes over what is no number; the exponential does not, and the sum keeps it.
  template <int N>
  __device__ __forceinline__ void weigh(Sums<M, N>& s, Sums<M, 8>& out, float scale2) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = best[m][half];
#pragma unroll
        for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
        top = row_max(top);
        const float correction = ptx::exp2_approx((best[m][half] - top) * scale2), shift = top * scale2;
        best[m][half] = top;
        sum[m][half] *= correction;
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
          for (int i = half * 2; i < half * 2 + 2; i++) out[m][n][i] *= correction;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
          for (int i = half * 2; i < half * 2 + 2; i++) {
            s[m][n][i] = ptx::exp2_approx(fmaf(s[m][n][i], scale2, -shift));
            sum[m][half] += s[m][n][i];
          }
      }
  }

  // Divides by the sums of weights, and leaves the log of the sum of exponentials of rows from `from` on; both are
  // zero where there were no keys.
  __device__ __forceinline__ void finish(
      Sums<M, 8>& out, float* __restrict__ log_sum, int from, int length, float score_scale) const {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float total = row_sum(sum[m][half]), inverse = total != 0.f ? 1.f / total : 0.f;
#pragma unroll
        for (int n = 0; n < 8; n++) {
          out[m][n][half * 2] *= inverse;
          out[m][n][half * 2 + 1] *= inverse;
        }
        const int row = from + m * 16 + half * 8 + lane_id() / 4;
        if (lane_id() % 4 == 0 && row < length)
          log_sum[row] = total != 0.f ? best[m][half] * score_scale + logf(total) : 0.f;
      }
  }
};

// --- Gradients ---------------------------------------------------------------------------------------------

// Columns of scores that the gradients have in registers at a time.
constexpr int SLICE = 16;

// The row statistics that the gradients need: log2 of the sum of exponentials and rowsum(dy y), interleaved.
using Statistics = float2;

// Those of the rows that a thread holds.
template <int M>
__device__ __forceinline__ void own_rows(Statistics (&own)[M][2], const Statistics* statistics) {
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
      own[m][half] = statistics[m * 16 + half * 8 + lane_id() / 4];
}

// dq += ds k without the scale, for SLICE keys of the tiles, of which `keys` count.
template <int M>
__device__ __forceinline__ void query_grad(Sums<M, 8>& dq, const Operand<M, 4>& q, const Operand<M, 4>& dy,
    const Statistics (&own)[M][2], const bf16* k_tile, const bf16* v_tile, int keys, float scale2) {
  Sums<M, SLICE / 8> p = {}, ds = {};
  multiply_nt(p, q, k_tile);
  multiply_nt(ds, dy, v_tile);
  if (keys < SLICE) mask(p, keys);
#pragma unroll
  for (int m = 0; m < M; m++)
#pragma unroll
    for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Statistics row = own[m][i / 2];
        ds[m][n][i] = ptx::exp2_approx(fmaf(p[m][n][i], scale2, -row.x)) * (ds[m][n][i] - row.y);
      }
  multiply_nn(dq, ds, k_tile);
}

// dk += ds^T q without the scale and dv += p^T dy, for SLICE queries of the tiles. Those beyond the length
// are zeros and so are their statistics: their weights are finite, and they add nothing.
__device__ __forceinline__ void key_grad(Sums<1, 8>& dk, Sums<1, 8>& dv, const Operand<1, 4>& k,
    const Operand<1, 4>& v, const bf16* q_tile, const bf16* dy_tile, const Statistics* statistics,
    float scale2) {
  Sums<1, SLICE / 8> p = {}, ds = {};
  multiply_nt(p, k, q_tile);
  multiply_nt(ds, v, dy_tile);
#pragma unroll
  for (int n = 0; n < SLICE / 8; n++) {
    const float4 two = *vector_at<const float4>(statistics + n * 8 + lane_id() % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      p[0][n][i] = ptx::exp2_approx(fmaf(p[0][n][i], scale2, i % 2 ? -two.z : -two.x));
      ds[0][n][i] = p[0][n][i] * (ds[0][n][i] - (i % 2 ? two.w : two.y));
    }
  }
  multiply_nn(dv, p, dy_tile);
  multiply_nn(dk, ds, q_tile);
}

}  // namespace attn
