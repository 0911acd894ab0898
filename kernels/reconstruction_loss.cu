// loss = sum w[i] error[i] / sum w, 0 where sum w = 0, error[i] = mean over a patch of (pred - target)^2. The
// target of a listed patch is read from the volume; with norm_pix it becomes (t - mean) / sqrt(var + 1e-6),
// var unbiased.
//   dpred = dloss w[i] / sum w 2 (pred - target) / P
//
// Blocks walk over the patches. A thread gathers up to QUARTERS vectors of 8 values of the target, while those of
// pred are under way, and keeps them in shared memory for the mean, the variance and the error. Where its vectors lie
// in a patch a thread finds once, and where each of the next 32 patches begins a lane finds for all: divisions take
// longer than the memory.
//
// Bound by memory: 4 bytes read a value, and for the gradient 2 written. A warp takes 146 instructions for 256
// values of a patch of 16^3, of the 220 that a multiprocessor of an H200 has time for while they are read, and of 330
// in the gradient.
//
// Values of a patch run [p0, p1, p2, C], channel fastest. Where there is one channel and the edge is a
// multiple of 8, the 8 values of a vector lie side by side in the volume (_lines); else they are gathered one
// by one (_voxels). P is a multiple of 8, and at most 8 QUARTERS THREADS.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr float EPS = 1e-6f;
constexpr int QUARTERS = 4;       // of a patch
constexpr int THREADS = 1024;     // of a block at most, which has one for each vector of a quarter
constexpr int SUM_THREADS = 256;  // of the block that adds the parts

// A batch of volumes [B, C, nx, ny, nz] and how it falls into patches.
struct Volume {
  const bf16* __restrict__ voxels;
  uint32_t channels, nx, ny, nz, edge;

  __device__ uint32_t values() const {
    return edge * edge * edge * channels;
  }
  // Where patch `token` of sample `b` begins. Tokens run with the last axis fastest.
  __device__ size_t patch(uint32_t b, uint32_t token) const {
    const uint32_t gy = ny / edge, gz = nz / edge, line = token / gz;
    const size_t plane = static_cast<size_t>(b) * channels * nx + line / gy * edge;
    return (plane * ny + line % gy * edge) * nz + token % gz * edge;
  }
  // Where value `i` of a patch lies from there.
  __device__ uint32_t value(uint32_t i) const {
    const uint32_t voxel = i / channels, line = voxel / edge, plane = i % channels * nx + line / edge;
    return (plane * ny + line % edge) * nz + voxel % edge;
  }
};

// The target of a patch is (value - mean) scale = value scale + shift.
struct Normal {
  float scale, shift;
};

// This thread's vectors of a patch, one of each quarter, as far as it has any. A quarter of a patch of lines is a
// whole number of planes. Vectors of the target are in shared memory.
template <bool LINES>
struct Part {
  const Volume& volume;
  uint4* target;  // [P / 8]
  uint32_t size, quarter;
  float share, share_but_one;
  uint32_t place;  // where the first of lines begins

  __device__ Part(const Volume& volume, uint4* target)
      : volume(volume), target(target), size(volume.values()), quarter((size / 8 + QUARTERS - 1) / QUARTERS),
        share(1.0f / size), share_but_one(1.0f / (size - 1)), place(LINES ? volume.value(8 * threadIdx.x) : 0) {}

  __device__ uint32_t vector(uint32_t u) const {
    return threadIdx.x + u * quarter;
  }
  __device__ bool has(uint32_t u) const {
    return threadIdx.x < quarter && (LINES || vector(u) < size / 8);
  }
  // Loads those of a prediction, and those of the patch that begins at `patch`, which it makes the target. Gives
  // their sum.
  __device__ float gather(const bf16* predicted, const bf16* patch, uint4 (&ps)[QUARTERS]) const {
    uint4 bits[QUARTERS];
    predicted += 8 * threadIdx.x;
#pragma unroll
    for (int u = 0; u < QUARTERS; u++) {
      if (!has(u)) break;
      ps[u] = load_once(predicted);
      predicted += 8 * quarter;
    }
    const bf16* line = patch + place;
#pragma unroll
    for (int u = 0; u < QUARTERS; u++) {
      if (!has(u)) break;
      if constexpr (LINES) {
        bits[u] = load(line);
        line += volume.edge / QUARTERS * volume.ny * volume.nz;
      } else {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = static_cast<float>(patch[volume.value(8 * vector(u) + i)]);
        bits[u] = pack(v);
      }
    }
    float total = 0;
#pragma unroll
    for (int u = 0; u < QUARTERS; u++) {
      if (!has(u)) break;
      float t[8];
      unpack(bits[u], t);
      total += sum(t);
      target[vector(u)] = bits[u];
    }
    return total;
  }
  __device__ Normal normal(float total) const {
    const float mean = block_sum(total) * share;
    float squares = 0;
#pragma unroll
    for (int u = 0; u < QUARTERS; u++) {
      if (!has(u)) break;
      float t[8];
      unpack(target[vector(u)], t);
#pragma unroll
      for (int i = 0; i < 8; i++) squares += (t[i] - mean) * (t[i] - mean);
    }
    const float scale = rsqrtf(block_sum(squares) * share_but_one + EPS);
    return {scale, -mean * scale};
  }
};

// Runs `each(i, begin)` for every patch i of this block, which begins at `begin` in the volume.
template <class Each>
__device__ __forceinline__ void for_patches(const Volume& volume, const uint32_t* __restrict__ ids, int patches,
                                            uint32_t count, Each each) {
  for (int first = blockIdx.x; first < patches; first += 32 * gridDim.x) {
    const int own = min(first + lane_id() * gridDim.x, patches - 1);
    const size_t begin = volume.patch(own / count, ids[own]);
    for (int n = 0; n < 32; n++) {
      const int i = first + n * gridDim.x;
      if (i >= patches) break;
      each(i, volume.voxels + __shfl_sync(~0u, begin, n));
    }
  }
}

// Blocks leave sum w error and sum w of their patches.
template <bool LINES>
__device__ __forceinline__ void errors(
    const bf16* __restrict__ pred,     // [B, M, P]
    const Volume& volume,
    const uint32_t* __restrict__ ids,  // [B, M]
    const float* __restrict__ weight,  // [B, M]
    float* __restrict__ per_patch,     // [B, M]
    float2* __restrict__ parts,        // [gridDim.x]
    int patches, uint32_t count, bool norm_pix) {
  DYN_SMEM(uint4, values);  // [P / 8]
  const Part<LINES> own(volume, values);
  float2 part = {0, 0};
  for_patches(volume, ids, patches, count, [&](int i, const bf16* begin) {
    const bf16* predicted = pred + static_cast<size_t>(i) * own.size;
    uint4 ps[QUARTERS];
    const float sum_target = own.gather(predicted, begin, ps);
    const Normal normal = norm_pix ? own.normal(sum_target) : Normal{1, 0};
    float squares = 0;
#pragma unroll
    for (int u = 0; u < QUARTERS; u++) {
      if (!own.has(u)) break;
      float p[8], t[8];
      unpack(ps[u], p);
      unpack(own.target[own.vector(u)], t);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        const float e = p[k] - (t[k] * normal.scale + normal.shift);
        squares += e * e;
      }
    }
    const float error = block_sum(squares) * own.share;
    if (threadIdx.x == 0) {
      const float w = weight[i];
      per_patch[i] = error;
      part.x += w * error;
      part.y += w;
    }
  });
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
}

template <bool LINES>
__device__ __forceinline__ void errors_grad(
    const float* __restrict__ dloss,   // []
    const float* __restrict__ total,   // [], sum w
    const bf16* __restrict__ pred,     // [B, M, P]
    const Volume& volume,
    const uint32_t* __restrict__ ids,  // [B, M]
    const float* __restrict__ weight,  // [B, M]
    bf16* __restrict__ dpred,          // [B, M, P]
    int patches, uint32_t count, bool norm_pix) {
  DYN_SMEM(uint4, values);  // [P / 8]
  const Part<LINES> own(volume, values);
  const float unit = total[0] == 0 ? 0 : dloss[0] * (2.0f / own.size) / total[0];
  for_patches(volume, ids, patches, count, [&](int i, const bf16* begin) {
    const size_t patch = static_cast<size_t>(i) * own.size;
    uint4 ps[QUARTERS];
    const float factor = unit * weight[i];
    const float sum_target = own.gather(pred + patch, begin, ps);
    const Normal normal = norm_pix ? own.normal(sum_target) : Normal{1, 0};
#pragma unroll
    for (int u = 0; u < QUARTERS; u++) {
      if (!own.has(u)) break;
      float p[8], t[8];
      unpack(ps[u], p);
      unpack(own.target[own.vector(u)], t);
#pragma unroll
      for (int k = 0; k < 8; k++) p[k] = factor * (p[k] - (t[k] * normal.scale + normal.shift));
      store(dpred + patch + 8 * own.vector(u), p);
    }
  });
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_lines(
    const bf16* __restrict__ pred, const bf16* __restrict__ volume, const uint32_t* __restrict__ ids,
    const float* __restrict__ weight, float* __restrict__ per_patch, float2* __restrict__ parts, int patches,
    uint32_t count, uint32_t /* one channel */, uint32_t nx, uint32_t ny, uint32_t nz, uint32_t edge, int norm_pix) {
  const Volume v = {volume, 1, nx, ny, nz, edge};
  errors<true>(pred, v, ids, weight, per_patch, parts, patches, count, norm_pix);
}

extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_voxels(
    const bf16* __restrict__ pred, const bf16* __restrict__ volume, const uint32_t* __restrict__ ids,
    const float* __restrict__ weight, float* __restrict__ per_patch, float2* __restrict__ parts, int patches,
    uint32_t count, uint32_t channels, uint32_t nx, uint32_t ny, uint32_t nz, uint32_t edge, int norm_pix) {
  const Volume v = {volume, channels, nx, ny, nz, edge};
  errors<false>(pred, v, ids, weight, per_patch, parts, patches, count, norm_pix);
}

// One block adds the parts.
extern "C" __global__ void __launch_bounds__(SUM_THREADS) reconstruction_loss_mean(
    const float2* __restrict__ parts,  // [count]
    float* __restrict__ loss,          // []
    float* __restrict__ total,         // [], sum w
    int count) {
  float2 sums = {0, 0};
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += SUM_THREADS) {
    sums.x += parts[i].x;
    sums.y += parts[i].y;
  }
  const float weighted = block_sum(sums.x), weights = block_sum(sums.y);
  if (threadIdx.x == 0) {
    loss[0] = weights == 0 ? 0 : weighted / weights;
    total[0] = weights;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_grad_lines(
    const float* __restrict__ dloss, const float* __restrict__ total, const bf16* __restrict__ pred,
    const bf16* __restrict__ volume, const uint32_t* __restrict__ ids, const float* __restrict__ weight,
    bf16* __restrict__ dpred, int patches, uint32_t count, uint32_t channels, uint32_t nx, uint32_t ny,
    uint32_t nz, uint32_t edge, int norm_pix) {
  const Volume v = {volume, 1, nx, ny, nz, edge};
  errors_grad<true>(dloss, total, pred, v, ids, weight, dpred, patches, count, norm_pix);
}

extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_grad_voxels(
    const float* __restrict__ dloss, const float* __restrict__ total, const bf16* __restrict__ pred,
    const bf16* __restrict__ volume, const uint32_t* __restrict__ ids, const float* __restrict__ weight,
    bf16* __restrict__ dpred, int patches, uint32_t count, uint32_t channels, uint32_t nx, uint32_t ny,
    uint32_t nz, uint32_t edge, int norm_pix) {
  const Volume v = {volume, channels, nx, ny, nz, edge};
  errors_grad<false>(dloss, total, pred, v, ids, weight, dpred, patches, count, norm_pix);
}

EMU_KERNEL(reconstruction_loss_lines)
EMU_KERNEL(reconstruction_loss_voxels)
EMU_KERNEL(reconstruction_loss_mean)
EMU_KERNEL(reconstruction_loss_grad_lines)
EMU_KERNEL(reconstruction_loss_grad_voxels)
