// A linear layer and its gradients as in linear.cu, on Hopper: products of gemm_sm90.cuh. Where much is done
// to the sums, tiles are Wide ones or left by PingPong; weight gradients, of whose long sums there is one wave,
// have Wide ones or Narrow ones. How the work is split, what bounds it and what extents it takes stands there.
//
// What is left of a product goes from the registers to memory as vectors of 16 bytes; what it needs besides
// is read just before.
#include "gemm_sm90.cuh"
#include "linear.cuh"

using gemm::Along;
using namespace hopper;

// --- Forward -----------------------------------------------------------------------------------------------

// Leaves x w^T + b, [m, n], for x [m, k], w [n, k], b [n].
template <class Tile, class Leave>
__device__ __forceinline__ void affine(
    const TensorMap& x, const TensorMap& w, const float* b, int m, int n, int k, const Leave& leave) {
  multiply_all<Tile, Along::K, Along::K, false>(x, w, {m, n, k, k}, [&](const Task& task, const Sums<Tile>& c) {
    for_each_eight(c, task.at, m, n, [&](int row, int col, float (&values)[8]) {
      float bias[8];
      gemm::load_eight<gemm::Small>(b + col, n - col, bias);
#pragma unroll
      for (int i = 0; i < 8; i++) values[i] += bias[i];
      leave(row, col, values);
    });
  });
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_wide(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    bf16* __restrict__ y,                 // [m, n]
    int m, int n, int k) {
  affine<Wide>(x, w, b, m, n, k, Plain<Wide, bf16>{y, n});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_pingpong(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    bf16* __restrict__ y,                 // [m, n]
    int m, int n, int k) {
  affine<PingPong>(x, w, b, m, n, k, Plain<PingPong, bf16>{y, n});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_gelu_wide(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    bf16* __restrict__ h,                 // [m, n]
    bf16* __restrict__ y,                 // [m, n]
    int m, int n, int k) {
  affine<Wide>(x, w, b, m, n, k, WithGelu<Wide>{h, y, n});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_gelu_pingpong(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    bf16* __restrict__ h,                 // [m, n]
    bf16* __restrict__ y,                 // [m, n]
    int m, int n, int k) {
  affine<PingPong>(x, w, b, m, n, k, WithGelu<PingPong>{h, y, n});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_residual_wide(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const bf16* __restrict__ skip,        // [m, n]
    const float* __restrict__ scale,      // [m / rows_per_sample], or null for 1
    bf16* __restrict__ y,                 // [m, n]
    int m, int n, int k, int rows_per_sample) {
  affine<Wide>(x, w, b, m, n, k, WithResidual<Wide>{skip, scale, y, n, rows_per_sample});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_residual_pingpong(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const bf16* __restrict__ skip,        // [m, n]
    const float* __restrict__ scale,      // [m / rows_per_sample], or null for 1
    bf16* __restrict__ y,                 // [m, n]
    int m, int n, int k, int rows_per_sample) {
  affine<PingPong>(x, w, b, m, n, k, WithResidual<PingPong>{skip, scale, y, n, rows_per_sample});
}

// --- Gradients ---------------------------------------------------------------------------------------------

// Leaves dx = dy w, [m, k], for dy [m, n], w [n, k].
template <class Tile, class Leave>
__device__ __forceinline__ void input_grad(
    const TensorMap& dy, const TensorMap& w, int m, int n, int k, const Leave& leave) {
  multiply_all<Tile, Along::K, Along::MN, false>(
      dy, w, {m, k, n, n},
      [&](const Task& task, const Sums<Tile>& c) { for_each_eight(c, task.at, m, k, leave); });
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_wide(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    bf16* __restrict__ dx,                 // [m, k]
    int m, int n, int k) {
  input_grad<Wide>(dy, w, m, n, k, Plain<Wide, bf16>{dx, k});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_pingpong(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    bf16* __restrict__ dx,                 // [m, k]
    int m, int n, int k) {
  input_grad<PingPong>(dy, w, m, n, k, Plain<PingPong, bf16>{dx, k});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_gelu_wide(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    const bf16* __restrict__ h,            // [m, k]
    bf16* __restrict__ dh,                 // [m, k]
    int m, int n, int k) {
  input_grad<Wide>(dy, w, m, n, k, TimesGeluSlope<Wide>{h, dh, k});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_gelu_pingpong(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    const bf16* __restrict__ h,            // [m, k]
    bf16* __restrict__ dh,                 // [m, k]
    int m, int n, int k) {
  input_grad<PingPong>(dy, w, m, n, k, TimesGeluSlope<PingPong>{h, dh, k});
}

// dw = dy^T x, [n, k], and db, the sums of dy's columns, [n], of splits of `rows` rows, `stride` apart. The
// first column of tiles has the latter.
template <class Tile>
__device__ __forceinline__ void weight_grad(
    const TensorMap& dy, const TensorMap& x, float* dw, float* db, int m, int n, int k, int rows, int stride) {
  multiply_all<Tile, Along::MN, Along::MN, true>(
      dy, x, {n, k, m, rows}, [&](const Task& task, const Sums<Tile>& c) {
        const size_t behind = static_cast<size_t>(task.split) * stride;
        for_each_eight(c, task.at, n, k, Plain<Tile, float>{dw + behind, k});
        static_assert(!Tile::IN_TURN, "a warpgroup has 64 rows");
        if (task.at.n != 0 || lane_id() % 4 != 0) return;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int row = task.at.m + Tile::row(0) + half * 8;
          if (row < n) db[behind + row] = c.row_sum[0][half * 2];
        }
      });
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_weight_grad_wide(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap x,   // [m, k]
    float* __restrict__ dw,                // [n, k], of each split
    float* __restrict__ db,                // [n], of each split
    int m, int n, int k, int rows, int stride) {
  weight_grad<Wide>(dy, x, dw, db, m, n, k, rows, stride);
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_weight_grad_narrow(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap x,   // [m, k]
    float* __restrict__ dw,                // [n, k], of each split
    float* __restrict__ db,                // [n], of each split
    int m, int n, int k, int rows, int stride) {
  weight_grad<Narrow>(dy, x, dw, db, m, n, k, rows, stride);
}

EMU_KERNEL_IN_CLUSTERS(linear_wide, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_pingpong, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_gelu_wide, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_gelu_pingpong, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_residual_wide, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_residual_pingpong, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_input_grad_wide, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_input_grad_pingpong, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_input_grad_gelu_wide, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_input_grad_gelu_pingpong, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_weight_grad_wide, CLUSTER)
EMU_KERNEL_IN_CLUSTERS(linear_weight_grad_narrow, CLUSTER)
