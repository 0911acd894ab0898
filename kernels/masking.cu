// Which patches of each volume are kept, and how much brain is in a patch. Both take microseconds: what counts is
// that no host is asked.
#include "philox.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = 8;  // of a block of foreground_weight

}  // namespace

// Keeps the patches with the smallest noise, of equals the first. A block (256 patches, sample): it draws the noise
// of all L patches of its sample, then each thread counts how many come before its own: L comparisons, where a sort
// would wait at log2(L)^2 / 2 barriers. L is at most 12,288: 48 KB of shared memory.
extern "C" __global__ void __launch_bounds__(THREADS) random_masking(
    const uint32_t* __restrict__ streams,  // [B, 6]
    uint32_t* __restrict__ ids_keep,       // [B, K]
    uint32_t* __restrict__ ids_removed,    // [B, L - K]
    uint32_t* __restrict__ ids_restore,    // [B, L]
    int length, int kept) {
  DYN_SMEM(uint4, noise);  // [L / 4, rounded up]
  const int quads = (length + 3) / 4;
  for (int q = threadIdx.x; q < quads; q += THREADS) {
    const uint4 words = philox(streams + blockIdx.y * STREAM, q);
    noise[q] = make_uint4(words.x >> 8, words.y >> 8, words.z >> 8, words.w >> 8);
  }
  __syncthreads();
  const int id = blockIdx.x * THREADS + threadIdx.x;
  if (id >= length) return;

  // Noise has 24 bits. Patches before this one come first with equal noise, that is, with less than one more.
  const uint32_t own = reinterpret_cast<const uint32_t*>(noise)[id];
  int place = 0;
  for (int q = 0; q < quads; q++) {
    const uint4 four = noise[q];
    const int first = 4 * q;
    place += four.x < own + (first < id);
    place += first + 1 < length && four.y < own + (first + 1 < id);
    place += first + 2 < length && four.z < own + (first + 2 < id);
    place += first + 3 < length && four.w < own + (first + 3 < id);
  }
  const size_t sample = blockIdx.y;
  ids_restore[sample * length + id] = place;
  if (place < kept) {
    ids_keep[sample * kept + place] = id;
  } else {
    ids_removed[sample * (length - kept) + place - kept] = id;
  }
}

// The share of a patch's voxels above the background. A warp for a patch; lines of patches with an edge of 8 or a
// multiple are read in vectors, others voxel by voxel.
extern "C" __global__ void __launch_bounds__(32 * WARPS) foreground_weight(
    const bf16* __restrict__ volume,   // [B, C, X, Y, Z]
    const uint32_t* __restrict__ ids,  // [B, M]
    float* __restrict__ weight,        // [B, M]
    int patches, int count, int channels, int nx, int ny, int nz, int edge, float background) {
  const int patch = blockIdx.x * WARPS + warp_id();
  if (patch >= patches) return;
  volume += static_cast<size_t>(patch / count) * channels * nx * ny * nz;
  const int gy = ny / edge, gz = nz / edge, id = ids[patch];
  const int x = id / (gy * gz) * edge, y = id / gz % gy * edge, z = id % gz * edge;
  // Where line i of the patch begins, by channel, x and y.
  const auto line = [&](int i) {
    const int channel = i / (edge * edge), dx = i / edge % edge, dy = i % edge;
    return volume + ((static_cast<size_t>(channel) * nx + x + dx) * ny + y + dy) * nz + z;
  };
  const int values = channels * edge * edge * edge;
  int brain = 0;
  if (edge % 8 == 0) {
    for (int i = 8 * lane_id(); i < values; i += 8 * 32) {
      float v[8];
      load(line(i / edge) + i % edge, v);
#pragma unroll
      for (int k = 0; k < 8; k++) brain += v[k] > background;
    }
  } else {
    for (int i = lane_id(); i < values; i += 32) {
      brain += __bfloat162float(line(i / edge)[i % edge]) > background;
    }
  }
  brain = warp_sum(brain);
  if (lane_id() == 0) weight[patch] = static_cast<float>(brain) / values;
}

EMU_KERNEL(random_masking)
EMU_KERNEL(foreground_weight)
