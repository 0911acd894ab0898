// A linear layer and its gradients as in linear.cu, on Hopper: products of gemm_sm90.cuh. Where much is done
// to the sums, tiles are left by PingPong, else they are Wide ones; weight gradients, of whose long sums there
// is one wave, have Wide ones or Narrow ones. How the work is split, what bounds it and what extents it takes
// stands there.
//
// Tensors of bf16 come as maps: operands in boxes of a tile's extent along a row or a column and 64 k, all
// others as one matrix in boxes of 64 rows and 64 columns.
#include "gelu.cuh"
#include "gemm_sm90.cuh"

using gemm::Along;
using namespace hopper;

// --- What is left ------------------------------------------------------------------------------------------

// An element a column, [n], that is added to sums; none at the end of rows that are shorter than a tile.
struct Bias {
  const float* b;
  int n;

  // Those of a thread's columns.
  template <class Tile>
  struct Of {
    float2 two[Tile::N / 8];

    __device__ __forceinline__ void add(int eight, float* sums) const {
      sums[0] += two[eight].x;
      sums[1] += two[eight].y;
    }
  };

  template <class Tile>
  __device__ __forceinline__ void load(int from, Of<Tile>& of) const {
#pragma unroll
    for (int eight = 0; eight < Tile::N / 8; eight++) {
      const int col = from + eight * 8 + lane_id() % 4 * 2;
      of.two[eight] = col < n ? *vector_at<const float2>(b + col) : make_float2(0.0f, 0.0f);
    }
  }
};

struct NoBias {
  template <class Tile>
  struct Of {
    __device__ __forceinline__ void add(int, float*) const {}
  };

  template <class Tile>
  __device__ __forceinline__ void load(int, Of<Tile>&) const {}
};

// Needs nothing besides while a tile is multiplied.
struct NeedsNothing {
  template <class Tile>
  struct Beside {};

  template <class Tile>
  __device__ __forceinline__ void begin(const Boxes<Tile>&, const Task&, Beside<Tile>&) const {}
};

// y = sums.
template <class Bias>
struct Plain : NeedsNothing {
  Bias bias;
  const TensorMap& y;  // [m, n]

  template <class Tile>
  __device__ __forceinline__ void end(
      Boxes<Tile>& boxes, const Task& task, const Beside<Tile>&, Sums<Tile>& c) const {
    typename Bias::template Of<Tile> of;
    bias.template load<Tile>(task.at.n, of);
    boxes.await_stored();
    boxes.store(c, y, task.at, [&](const Two& two, float* sums) { of.add(two.eight, sums); });
  }
};

// h = sums, y = gelu(h): of h as it is left, in bf16, which is what its gradient will read.
struct WithGelu : NeedsNothing {
  Bias bias;
  const TensorMap &h, &y;  // [m, n]

  template <class Tile>
  __device__ __forceinline__ void end(
      Boxes<Tile>& boxes, const Task& task, const Beside<Tile>&, Sums<Tile>& c) const {
    Bias::Of<Tile> of;
    bias.load<Tile>(task.at.n, of);
    boxes.await_stored();
    boxes.store(c, h, task.at, [&](const Two& two, float* sums) { of.add(two.eight, sums); });
    boxes.await_stored();
    boxes.store_over(c, y, task.at, [](const Two&, float* sums, const float* before) {
#pragma unroll
      for (int i = 0; i < 2; i++) sums[i] = gelu(before[i]);
    });
  }
};

// y = skip + scale sums.
struct WithResidual {
  Bias bias;
  const TensorMap &skip, &y;  // [m, n]
  const float* scale;         // [m / rows_per_sample], or null for 1
  int m, rows_per_sample;

  template <class Tile>
  struct Beside {
    float factors[Tile::PARTS][2];
  };

  template <class Tile>
  __device__ __forceinline__ void begin(const Boxes<Tile>& boxes, const Task& task, Beside<Tile>& beside) const {
    boxes.begin_load(skip, task.at);
#pragma unroll
    for (int i = 0; i < Tile::PARTS * 2; i++) {
      const int row = task.at.m + Tile::row(i / 2) + i % 2 * 8;
      beside.factors[i / 2][i % 2] = scale && row < m ? scale[row / rows_per_sample] : 1.0f;
    }
  }

  template <class Tile>
  __device__ __forceinline__ void end(
      Boxes<Tile>& boxes, const Task& task, const Beside<Tile>& beside, Sums<Tile>& c) const {
    Bias::Of<Tile> of;
    bias.load<Tile>(task.at.n, of);
    boxes.await_loaded();
    boxes.store_over(c, y, task.at, [&](const Two& two, float* sums, const float* kept) {
      of.add(two.eight, sums);
#pragma unroll
      for (int i = 0; i < 2; i++) sums[i] = kept[i] + beside.factors[two.part][two.half] * sums[i];
    });
  }
};

// dh = sums gelu'(h).
struct TimesGeluSlope {
  const TensorMap &h, &dh;  // [m, n]

  template <class Tile>
  struct Beside {};

  template <class Tile>
  __device__ __forceinline__ void begin(const Boxes<Tile>& boxes, const Task& task, Beside<Tile>&) const {
    boxes.begin_load(h, task.at);
  }

  template <class Tile>
  __device__ __forceinline__ void end(
      Boxes<Tile>& boxes, const Task& task, const Beside<Tile>&, Sums<Tile>& c) const {
    boxes.await_loaded();
    boxes.store_over(c, dh, task.at, [](const Two&, float* sums, const float* before) {
#pragma unroll
      for (int i = 0; i < 2; i++) sums[i] *= gelu_slope(before[i]);
    });
  }
};

// A weight gradient: dw = sums, db = the sums of the left operand's rows, which the first column of tiles has;
// of splits `stride` apart, in f32. Four lanes leave 32 bytes of a row, a sector of memory.
struct PartOfSplit : NeedsNothing {
  float *dw, *db;  // [n, k] and [n], of each split
  int n, k, stride;

  template <class Tile>
  __device__ __forceinline__ void end(
      const Boxes<Tile>&, const Task& task, const Beside<Tile>&, Sums<Tile>& c) const {
    const size_t behind = static_cast<size_t>(task.split) * stride;
    for_each_two(c, task.at, n, k, [&](int row, int col, float2 two) {
      *vector_at<float2>(dw + behind + static_cast<size_t>(row) * k + col) = two;
    });
    static_assert(!Tile::IN_TURN, "a warpgroup has 64 rows");
    if (task.at.n != 0 || lane_id() % 4 != 0) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = task.at.m + Tile::row(0) + half * 8;
      if (row < n) db[behind + row] = c.row_sum[0][half * 2];
    }
  }
};

// --- Forward -----------------------------------------------------------------------------------------------

// Leaves x w^T, [m, n], for x [m, k], w [n, k].
template <class Tile, class Leaving>
__device__ __forceinline__ void product(
    const TensorMap& x, const TensorMap& w, int m, int n, int k, const Leaving& leaving) {
  multiply_all<Tile, Along::K, Along::K, false>(x, w, {m, n, k, k}, leaving);
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_wide(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const __grid_constant__ TensorMap y,  // [m, n]
    int m, int n, int k) {
  product<Wide>(x, w, m, n, k, Plain<Bias>{{}, {b, n}, y});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_pingpong(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const __grid_constant__ TensorMap y,  // [m, n]
    int m, int n, int k) {
  product<PingPong>(x, w, m, n, k, Plain<Bias>{{}, {b, n}, y});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_gelu_wide(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const __grid_constant__ TensorMap h,  // [m, n]
    const __grid_constant__ TensorMap y,  // [m, n]
    int m, int n, int k) {
  product<Wide>(x, w, m, n, k, WithGelu{{}, {b, n}, h, y});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_gelu_pingpong(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const __grid_constant__ TensorMap h,  // [m, n]
    const __grid_constant__ TensorMap y,  // [m, n]
    int m, int n, int k) {
  product<PingPong>(x, w, m, n, k, WithGelu{{}, {b, n}, h, y});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_residual_wide(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const __grid_constant__ TensorMap skip,  // [m, n]
    const __grid_constant__ TensorMap y,     // [m, n]
    int m, int n, int k,
    const float* __restrict__ scale,         // [m / rows_per_sample], or null for 1
    int rows_per_sample) {
  product<Wide>(x, w, m, n, k, WithResidual{{b, n}, skip, y, scale, m, rows_per_sample});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_residual_pingpong(
    const __grid_constant__ TensorMap x,  // [m, k]
    const __grid_constant__ TensorMap w,  // [n, k]
    const float* __restrict__ b,          // [n]
    const __grid_constant__ TensorMap skip,  // [m, n]
    const __grid_constant__ TensorMap y,     // [m, n]
    int m, int n, int k,
    const float* __restrict__ scale,         // [m / rows_per_sample], or null for 1
    int rows_per_sample) {
  product<PingPong>(x, w, m, n, k, WithResidual{{b, n}, skip, y, scale, m, rows_per_sample});
}

// --- Gradients ---------------------------------------------------------------------------------------------

// Leaves dx = dy w, [m, k], for dy [m, n], w [n, k].
template <class Tile, class Leaving>
__device__ __forceinline__ void input_grad(
    const TensorMap& dy, const TensorMap& w, int m, int n, int k, const Leaving& leaving) {
  multiply_all<Tile, Along::K, Along::MN, false>(dy, w, {m, k, n, n}, leaving);
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_wide(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    const __grid_constant__ TensorMap dx,  // [m, k]
    int m, int n, int k) {
  input_grad<Wide>(dy, w, m, n, k, Plain<NoBias>{{}, {}, dx});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_pingpong(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    const __grid_constant__ TensorMap dx,  // [m, k]
    int m, int n, int k) {
  input_grad<PingPong>(dy, w, m, n, k, Plain<NoBias>{{}, {}, dx});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_gelu_wide(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    const __grid_constant__ TensorMap h,   // [m, k]
    const __grid_constant__ TensorMap dh,  // [m, k]
    int m, int n, int k) {
  input_grad<Wide>(dy, w, m, n, k, TimesGeluSlope{h, dh});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_input_grad_gelu_pingpong(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap w,   // [n, k]
    const __grid_constant__ TensorMap h,   // [m, k]
    const __grid_constant__ TensorMap dh,  // [m, k]
    int m, int n, int k) {
  input_grad<PingPong>(dy, w, m, n, k, TimesGeluSlope{h, dh});
}

// dw = dy^T x, [n, k], and db, the sums of dy's columns, [n], of splits of `rows` rows, `stride` apart.
template <class Tile>
__device__ __forceinline__ void weight_grad(
    const TensorMap& dy, const TensorMap& x, float* dw, float* db, int m, int n, int k, int rows, int stride) {
  multiply_all<Tile, Along::MN, Along::MN, true>(dy, x, {n, k, m, rows}, PartOfSplit{{}, dw, db, n, k, stride});
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_weight_grad_wide(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap x,   // [m, k]
    float* __restrict__ dw,                // [n, k], of each split
    float* __restrict__ db,                // [n], of each split
    int m, int n, int k, int rows, int stride) {
  weight_grad<WideReal>(dy, x, dw, db, m, n, k, rows, stride);
}

extern "C" __global__ void __cluster_dims__(CLUSTER) __launch_bounds__(THREADS, 1)
linear_weight_grad_narrow(
    const __grid_constant__ TensorMap dy,  // [m, n]
    const __grid_constant__ TensorMap x,   // [m, k]
    float* __restrict__ dw,                // [n, k], of each split
    float* __restrict__ db,                // [n], of each split
    int m, int n, int k, int rows, int stride) {
  weight_grad<NarrowReal>(dy, x, dw, db, m, n, k, rows, stride);
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
