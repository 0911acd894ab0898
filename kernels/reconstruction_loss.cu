// loss = sum w[i] error[i] / sum w, 0 where sum w = 0, error[i] = mean over a patch of (pred - target)^2. The
// target of a listed patch is read from the volume; with norm_pix it becomes (t - mean) / sqrt(var + 1e-6),
// var unbiased.
//   dpred = dloss w[i] / sum w 2 (pred - target) / P
//
// A block takes a patch: a thread gathers vectors of 8 values of the target, keeps them in shared memory, and
// reads them back for the mean, the variance and the error. Bound by memory: 4 bytes read a value, and for
// the gradient 2 written.
//
// Values of a patch run [p0, p1, p2, C], channel fastest. Where there is one channel and the edge is a
// multiple of 8, the 8 values of a vector lie side by side in the volume (_lines); else they are gathered one
// by one (_voxels). P is a multiple of 8.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr float EPS = 1e-6f;
constexpr int THREADS = 256;  // of a block at most: fewer for small patches
constexpr int UNROLL = 4;     // vectors that a thread loads at once

// A batch of volumes [B, C, nx, ny, nz] and how it falls into patches.
struct Volume {
  const bf16* __restrict__ voxels;
  int channels, nx, ny, nz, edge;

  __device__ int values() const {
    return edge * edge * edge * channels;
  }

  // Values 8 k to 8 k + 7 of patch `token` of sample `b`.
  template <bool LINES>
  __device__ uint4 vector(int b, int token, int k) const {
    const int gy = ny / edge, gz = nz / edge;
    const int x = token / (gy * gz) * edge, y = token / gz % gy * edge, z = token % gz * edge;
    const size_t plane = static_cast<size_t>(nx) * ny * nz;
    const bf16* sample = voxels + b * channels * plane;
    const auto place = [&](int voxel) {
      const int p0 = voxel / (edge * edge), p1 = voxel / edge % edge, p2 = voxel % edge;
      return (static_cast<size_t>(x + p0) * ny + y + p1) * nz + z + p2;
    };
    if constexpr (LINES) {
      return load(sample + place(8 * k));
    } else {
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int at = 8 * k + i;
        v[i] = static_cast<float>(sample[at % channels * plane + place(at / channels)]);
      }
      return pack(v);
    }
  }
};

// The target of a patch: (value - mean) scale. Values are in shared memory, of each thread those that it has
// gathered.
struct Target {
  const uint4* values;
  float mean, scale;

  __device__ void vector(int k, float (&t)[8]) const {
    unpack(values[k], t);
#pragma unroll
    for (int i = 0; i < 8; i++) t[i] = (t[i] - mean) * scale;
  }
};

template <bool LINES>
__device__ __forceinline__ Target target(const Volume& volume, int b, int token, bool norm_pix,
                                         uint4* values) {
  const int size = volume.values();
  float total = 0;
  for (int first = threadIdx.x; first < size / 8; first += UNROLL * blockDim.x) {
    uint4 bits[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int k = first + u * blockDim.x;
      bits[u] = k < size / 8 ? volume.vector<LINES>(b, token, k) : zeros();
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int k = first + u * blockDim.x;
      float t[8];
      unpack(bits[u], t);
      total += sum(t);
      if (k < size / 8) values[k] = bits[u];
    }
  }
  if (!norm_pix) return {values, 0, 1};

  const float mean = block_sum(total) / size;
  float squares = 0;
  for (int k = threadIdx.x; k < size / 8; k += blockDim.x) {
    float t[8];
    unpack(values[k], t);
#pragma unroll
    for (int i = 0; i < 8; i++) t[i] = (t[i] - mean) * (t[i] - mean);
    squares += sum(t);
  }
  return {values, mean, rsqrtf(block_sum(squares) / (size - 1) + EPS)};
}

// Blocks walk over the patches and leave sum w error and sum w of theirs.
template <bool LINES>
__device__ __forceinline__ void errors(
    const bf16* __restrict__ pred,     // [B, M, P]
    const Volume& volume,
    const uint32_t* __restrict__ ids,  // [B, M]
    const float* __restrict__ weight,  // [B, M]
    float* __restrict__ per_patch,     // [B, M]
    float2* __restrict__ parts,        // [gridDim.x]
    int patches, int count, bool norm_pix) {
  DYN_SMEM(uint4, values);  // [P / 8]
  const int size = volume.values();
  float2 part = {0, 0};
  for (int i = blockIdx.x; i < patches; i += gridDim.x) {
    const Target t = target<LINES>(volume, i / count, ids[i], norm_pix, values);
    const bf16* predicted = pred + static_cast<size_t>(i) * size;
    float squares = 0;
    for (int first = threadIdx.x; first < size / 8; first += UNROLL * blockDim.x) {
      uint4 bits[UNROLL];
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = first + u * blockDim.x;
        if (k < size / 8) bits[u] = load(predicted + 8 * k);
      }
#pragma unroll
      for (int u = 0; u < UNROLL; u++) {
        const int k = first + u * blockDim.x;
        if (k >= size / 8) break;
        float e[8], p[8];
        t.vector(k, e);
        unpack(bits[u], p);
#pragma unroll
        for (int j = 0; j < 8; j++) e[j] = (p[j] - e[j]) * (p[j] - e[j]);
        squares += sum(e);
      }
    }
    const float error = block_sum(squares) / size, w = weight[i];
    if (threadIdx.x == 0) per_patch[i] = error;
    part.x += w * error;
    part.y += w;
  }
  if (threadIdx.x == 0) parts[blockIdx.x] = part;
}

// A block a patch.
template <bool LINES>
__device__ __forceinline__ void errors_grad(
    const float* __restrict__ dloss,   // []
    const float* __restrict__ total,   // [], sum w
    const bf16* __restrict__ pred,     // [B, M, P]
    const Volume& volume,
    const uint32_t* __restrict__ ids,  // [B, M]
    const float* __restrict__ weight,  // [B, M]
    bf16* __restrict__ dpred,          // [B, M, P]
    int count, bool norm_pix) {
  DYN_SMEM(uint4, values);  // [P / 8]
  const int size = volume.values(), i = blockIdx.x;
  const Target t = target<LINES>(volume, i / count, ids[i], norm_pix, values);
  const float unit = total[0] == 0 ? 0 : dloss[0] * (2.0f / size) / total[0];
  const float factor = unit * weight[i];
  const size_t patch = static_cast<size_t>(i) * size;
  for (int first = threadIdx.x; first < size / 8; first += UNROLL * blockDim.x) {
    uint4 bits[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int k = first + u * blockDim.x;
      if (k < size / 8) bits[u] = load_once(pred + patch + 8 * k);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const int k = first + u * blockDim.x;
      if (k >= size / 8) break;
      float d[8], p[8];
      t.vector(k, d);
      unpack(bits[u], p);
#pragma unroll
      for (int j = 0; j < 8; j++) d[j] = factor * (p[j] - d[j]);
      store(dpred + patch + 8 * k, d);
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_lines(
    const bf16* __restrict__ pred, const bf16* __restrict__ volume, const uint32_t* __restrict__ ids,
    const float* __restrict__ weight, float* __restrict__ per_patch, float2* __restrict__ parts, int patches,
    int count, int channels, int nx, int ny, int nz, int edge, int norm_pix) {
  const Volume v = {volume, channels, nx, ny, nz, edge};
  errors<true>(pred, v, ids, weight, per_patch, parts, patches, count, norm_pix);
}

extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_voxels(
    const bf16* __restrict__ pred, const bf16* __restrict__ volume, const uint32_t* __restrict__ ids,
    const float* __restrict__ weight, float* __restrict__ per_patch, float2* __restrict__ parts, int patches,
    int count, int channels, int nx, int ny, int nz, int edge, int norm_pix) {
  const Volume v = {volume, channels, nx, ny, nz, edge};
  errors<false>(pred, v, ids, weight, per_patch, parts, patches, count, norm_pix);
}

// One block adds the parts.
extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_mean(
    const float2* __restrict__ parts,  // [count]
    float* __restrict__ loss,          // []
    float* __restrict__ total,         // [], sum w
    int count) {
  float2 sums = {0, 0};
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += THREADS) {
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
    bf16* __restrict__ dpred, int count, int channels, int nx, int ny, int nz, int edge, int norm_pix) {
  const Volume v = {volume, channels, nx, ny, nz, edge};
  errors_grad<true>(dloss, total, pred, v, ids, weight, dpred, count, norm_pix);
}

extern "C" __global__ void __launch_bounds__(THREADS) reconstruction_loss_grad_voxels(
    const float* __restrict__ dloss, const float* __restrict__ total, const bf16* __restrict__ pred,
    const bf16* __restrict__ volume, const uint32_t* __restrict__ ids, const float* __restrict__ weight,
    bf16* __restrict__ dpred, int count, int channels, int nx, int ny, int nz, int edge, int norm_pix) {
  const Volume v = {volume, channels, nx, ny, nz, edge};
  errors_grad<false>(dloss, total, pred, v, ids, weight, dpred, count, norm_pix);
}

EMU_KERNEL(reconstruction_loss_lines)
EMU_KERNEL(reconstruction_loss_voxels)
EMU_KERNEL(reconstruction_loss_mean)
EMU_KERNEL(reconstruction_loss_grad_lines)
EMU_KERNEL(reconstruction_loss_grad_voxels)
