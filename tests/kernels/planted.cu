// Kernels with one mistake each, made where `bug` is not 0: positive controls of the emulator
// (tests/planted.rs). A checker that never reported anything cannot be told from one that does not run.
// Nobody launches them on a GPU.
#include "ptx.cuh"

constexpr int THREADS = 128;

// y[block] = sum of x[block][0..THREADS). Bug: the sums of the warps are read before they are written, in the
// last block, before which a checker has seen nothing wrong.
extern "C" __global__ void __launch_bounds__(THREADS)
    planted_barrier(const float* __restrict__ x, float* __restrict__ y, int bug) {
  DYN_SMEM(float, sums);  // [THREADS / 32]
  float sum = x[blockIdx.x * THREADS + threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(~0u, sum, lanes);
  }
  if (lane_id() == 0) {
    sums[warp_id()] = sum;
  }
  if (!bug || blockIdx.x < gridDim.x - 1) {
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    y[blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
  }
}
EMU_KERNEL(planted_barrier)

// y[i] = x[i] by way of the neighbour. Bug: a lane reads before the other has written.
extern "C" __global__ void __launch_bounds__(32)
    planted_syncwarp(const float* __restrict__ x, float* __restrict__ y, int bug) {
  DYN_SMEM(float, values);  // [32]
  values[lane_id() ^ 1] = x[lane_id() ^ 1];
  if (!bug) {
    __syncwarp();
  }
  y[lane_id()] = values[lane_id()];
}
EMU_KERNEL(planted_syncwarp)

// y[i] = x[i] over tiles of THREADS elements, through two stages of shared memory that cp.async fills one
// tile ahead; a thread reads what another has copied. Bug 1: the tile is read before it has come. Bug 2: a
// stage is filled while others still read it.
extern "C" __global__ void __launch_bounds__(THREADS)
    planted_stages(const float* __restrict__ x, float* __restrict__ y, int tiles, int bug) {
  DYN_SMEM(float, stages);  // [2][THREADS]
  const int mine = threadIdx.x;
  const int other = THREADS - 1 - mine;
  const auto fill = [&](int tile) {
    if (tile < tiles) {
      ptx::cp_async4(ptx::smem_u32(&stages[tile % 2 * THREADS + mine]), &x[tile * THREADS + mine]);
    }
    ptx::cp_async_commit();
  };
  fill(0);
  for (int tile = 0; tile < tiles; tile++) {
    fill(tile + 1);
    if (bug == 1) {
      ptx::cp_async_wait<2>();
    } else {
      ptx::cp_async_wait<1>();
    }
    __syncthreads();
    y[tile * THREADS + other] = stages[tile % 2 * THREADS + other];
    if (bug != 2) {
      __syncthreads();
    }
  }
}
EMU_KERNEL(planted_stages)

// y[i] = x[i] for i < n. Bug: one element more, where y has room and x has not.
extern "C" __global__ void __launch_bounds__(THREADS)
    planted_past_the_end(const float* __restrict__ x, float* __restrict__ y, int n, int bug) {
  for (int i = threadIdx.x; i < (bug ? n + 1 : n); i += THREADS) {
    y[i] = x[i];
  }
}
EMU_KERNEL(planted_past_the_end)

// y[i] = x[i], by way of dynamic shared memory of THREADS floats. Bug: the last one is written behind it.
extern "C" __global__ void __launch_bounds__(THREADS)
    planted_shared_overrun(const float* __restrict__ x, float* __restrict__ y, int bug) {
  DYN_SMEM(float, values);
  const int at = threadIdx.x + (bug ? 1 : 0);
  values[at] = x[threadIdx.x];
  y[threadIdx.x] = values[at];
}
EMU_KERNEL(planted_shared_overrun)

// y[i] = x[i] by fours. Bug: vectors that are not aligned to their size.
extern "C" __global__ void __launch_bounds__(THREADS)
    planted_unaligned(const float* __restrict__ x, float* __restrict__ y, int n, int bug) {
  const int first = bug ? 1 : 0;
  for (int i = first + 4 * threadIdx.x; i + 4 <= n; i += 4 * THREADS) {
    *vector_at<float4>(y + i) = *vector_at<const float4>(x + i);
  }
}
EMU_KERNEL(planted_unaligned)

// total[0] += 1 by each block. Bug: read and written as if there were one.
extern "C" __global__ void __launch_bounds__(32) planted_blocks_add(unsigned* __restrict__ total, int bug) {
  if (threadIdx.x == 0) {
    if (bug) {
      total[0] += 1;
    } else {
      atomicAdd(total, 1u);
    }
  }
}
EMU_KERNEL(planted_blocks_add)

// total[0] = sum of x by the last block to come, which knows by `count` (0 before) that the parts of all
// others are there. Bug: nothing orders the parts before the count.
extern "C" __global__ void __launch_bounds__(32)
    planted_last_block(const float* __restrict__ x, float* __restrict__ parts, unsigned* __restrict__ count,
                       float* __restrict__ total, int bug) {
  if (threadIdx.x > 0) {
    return;
  }
  parts[blockIdx.x] = x[blockIdx.x];
  if (!bug) {
    __threadfence();
  }
  if (atomicAdd(count, 1u) == gridDim.x - 1) {
    __threadfence();
    float sum = 0.0f;
    for (unsigned i = 0; i < gridDim.x; i++) {
      sum += parts[i];
    }
    total[0] = sum;
  }
}
EMU_KERNEL(planted_last_block)

// y[i] = x[i]. Bug: half of the threads wait for all.
extern "C" __global__ void __launch_bounds__(THREADS)
    planted_divergent_barrier(const float* __restrict__ x, float* __restrict__ y, int bug) {
  if (!bug || threadIdx.x < THREADS / 2) {
    __syncthreads();
  }
  y[threadIdx.x] = x[threadIdx.x];
}
EMU_KERNEL(planted_divergent_barrier)

// y[i] = x[i ^ 1]. Bug: half of the lanes exchange with all.
extern "C" __global__ void __launch_bounds__(32)
    planted_divergent_shuffle(const float* __restrict__ x, float* __restrict__ y, int bug) {
  float value = x[threadIdx.x];
  if (!bug || threadIdx.x < 16) {
    value = __shfl_xor_sync(~0u, value, 1);
  }
  y[threadIdx.x] = value;
}
EMU_KERNEL(planted_divergent_shuffle)
