// Which patches of each volume are kept, which of them are of one modality, and how much brain is in a patch. All take
// microseconds: what counts is that no host is asked.
#include "philox.cuh"
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int WARPS = 8;                     // of a block that gives each patch a warp
constexpr uint32_t ABSENT_PLACE = 0xffffffff;  // of a token that is not there
enum TokenState : uint32_t { FREE, HIDDEN, ABSENT };

// The voxels of patch `id` above the background, known to all lanes. Lines of patches with an edge of 8 or a multiple
// are read in vectors, others voxel by voxel.
__device__ __forceinline__ int brain_voxels(const bf16* __restrict__ volume, int id, int channels, int nx,
                                            int ny, int nz, int edge, float background) {
  const int gy = ny / edge, gz = nz / edge;
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
  return warp_sum(brain);
}

// How many of the tokens before `place` are of modality `number`, which has `each` of them.
__device__ __forceinline__ int rank_in_modality(const uint32_t* __restrict__ ids, int place, int number, int each) {
  int rank = 0;
  for (int i = 0; i < place; i++) rank += static_cast<int>(ids[i]) / each == number;
  return rank;
}

}  // namespace

// The state of each token: that of its modality, but ABSENT where `foreground` asks for brain and the patch has none. A
// warp for a patch.
extern "C" __global__ void __launch_bounds__(32 * WARPS) token_states(
    const bf16* __restrict__ volume,          // [B, C, X, Y, Z]
    const uint32_t* __restrict__ modalities,  // [B, M]
    uint32_t* __restrict__ states,            // [B, L]
    int patches, int tokens, int kinds, int foreground, int channels, int nx, int ny, int nz, int edge,
    float background) {
  const int patch = blockIdx.x * WARPS + warp_id();
  if (patch >= patches) return;
  const int sample = patch / tokens, id = patch % tokens;
  uint32_t state = modalities[sample * kinds + id / (tokens / kinds)];
  if (foreground) {
    volume += static_cast<size_t>(sample) * channels * nx * ny * nz;
    if (brain_voxels(volume, id, channels, nx, ny, nz, edge, background) == 0) state = ABSENT;
  }
  if (lane_id() == 0) states[patch] = state;
}

// Keeps the patches with the smallest noise, of equals the first, free ones before hidden before absent ones. A block
// (256 patches, sample): it draws the noise of all L patches of its sample, then each thread counts how many come before
// its own: L comparisons, where a sort would wait at log2(L)^2 / 2 barriers. L is at most 12,032, so that shared memory stays below 48 KB.
extern "C" __global__ void __launch_bounds__(THREADS) random_masking(
    const uint32_t* __restrict__ streams,  // [B, 6]
    const uint32_t* __restrict__ states,   // [B, L] or null: all are free
    uint32_t* __restrict__ ids_keep,       // [B, K]
    uint32_t* __restrict__ ids_removed,    // [B, L - K]
    uint32_t* __restrict__ ids_shuffle,    // [B, L]
    uint32_t* __restrict__ visible,        // [B], or null without states: prefix + patches kept
    uint32_t* __restrict__ total,          // [B], or null: prefix + patches kept and removed
    int prefix, int length, int kept) {
  DYN_SMEM(uint4, noise);  // [L / 4, rounded up]; the state above 24 bits of noise
  const int quads = (length + 3) / 4;
  const size_t sample = blockIdx.y;
  const auto state = [&](int id) { return id < length ? states[sample * length + id] << 24 : 0; };
  for (int q = threadIdx.x; q < quads; q += THREADS) {
    const uint4 words = philox(streams + sample * STREAM, q);
    uint4 four = make_uint4(words.x >> 8, words.y >> 8, words.z >> 8, words.w >> 8);
    if (states) {
      four.x |= state(4 * q);
      four.y |= state(4 * q + 1);
      four.z |= state(4 * q + 2);
      four.w |= state(4 * q + 3);
    }
    noise[q] = four;
  }
  __syncthreads();
  const uint32_t* keys = reinterpret_cast<const uint32_t*>(noise);
  if (states && blockIdx.x == 0) {
    int free = 0, there = 0;
    for (int i = threadIdx.x; i < length; i += THREADS) {
      free += keys[i] >> 24 == FREE;
      there += keys[i] >> 24 != ABSENT;
    }
    free = block_sum(free);
    there = block_sum(there);
    if (threadIdx.x == 0) {
      const int least = min(min(free, 1), kept);
      visible[sample] = prefix + max(static_cast<int>(static_cast<int64_t>(free) * kept / length), least);
      total[sample] = prefix + there;
    }
  }
  const int id = blockIdx.x * THREADS + threadIdx.x;
  if (id >= length) return;

  // Patches before this one come first with an equal key, that is, with less than one more.
  const uint32_t own = keys[id];
  int place = 0;
  for (int q = 0; q < quads; q++) {
    const uint4 four = noise[q];
    const int first = 4 * q;
    place += four.x < own + (first < id);
    place += first + 1 < length && four.y < own + (first + 1 < id);
    place += first + 2 < length && four.z < own + (first + 2 < id);
    place += first + 3 < length && four.w < own + (first + 3 < id);
  }
  ids_shuffle[sample * length + place] = id;
  if (place < kept) {
    ids_keep[sample * kept + place] = id;
  } else {
    ids_removed[sample * (length - kept) + place - kept] = id;
  }
}

// The kept tokens of modality `number`, each of which has `each`: ids[r] is the r-th of its tokens in ids_shuffle, and
// places[p] is r for the kept token p that is one of them. A thread for a place in ids_shuffle.
extern "C" __global__ void __launch_bounds__(THREADS) kept_of_modality(
    const uint32_t* __restrict__ ids_shuffle,  // [B, L]
    const uint32_t* __restrict__ visible,      // [B]
    uint32_t* __restrict__ ids,                // [B, min(K, each)]
    uint32_t* __restrict__ places,             // [B, K]
    int prefix, int number, int each, int kept, int length) {
  const size_t sample = blockIdx.y;
  const int place = blockIdx.x * THREADS + threadIdx.x, most = min(kept, each);
  if (place >= length) return;
  ids_shuffle += sample * length;
  const int id = ids_shuffle[place];
  const bool mine = id / each == number;
  const int rank = mine ? rank_in_modality(ids_shuffle, place, number, each) : 0;
  if (mine && rank < most) ids[sample * most + rank] = id;
  const int stay = static_cast<int>(visible[sample]) - prefix;
  if (place < kept) places[sample * kept + place] = mine && place < stay ? rank : ABSENT_PLACE;
}

// The removed tokens of modality `number`: ids[r] is the r-th of its tokens in ids_shuffle, places[r] where that stands
// if it is removed, and weight[r] whether it is. A thread for a place in ids_shuffle.
extern "C" __global__ void __launch_bounds__(THREADS) removed_of_modality(
    const uint32_t* __restrict__ ids_shuffle,  // [B, L]
    const uint32_t* __restrict__ visible,      // [B]
    const uint32_t* __restrict__ total,        // [B]
    uint32_t* __restrict__ ids,                // [B, each]
    uint32_t* __restrict__ places,             // [B, each]
    float* __restrict__ weight,                // [B, each]
    int prefix, int number, int each, int length) {
  const size_t sample = blockIdx.y;
  const int place = blockIdx.x * THREADS + threadIdx.x;
  if (place >= length) return;
  ids_shuffle += sample * length;
  const int id = ids_shuffle[place];
  if (id / each != number) return;
  const size_t at = sample * each + rank_in_modality(ids_shuffle, place, number, each);
  const int row = prefix + place;
  const bool removed = row >= static_cast<int>(visible[sample]) && row < static_cast<int>(total[sample]);
  ids[at] = id;
  places[at] = removed ? place : ABSENT_PLACE;
  weight[at] = removed;
}

// The share of a patch's voxels above the background, times a factor where there is one. A warp for a patch.
extern "C" __global__ void __launch_bounds__(32 * WARPS) foreground_weight(
    const bf16* __restrict__ volume,   // [B, C, X, Y, Z]
    const uint32_t* __restrict__ ids,  // [B, M]
    const float* __restrict__ factor,  // [B, M] or null
    float* __restrict__ weight,        // [B, M]
    int patches, int count, int channels, int nx, int ny, int nz, int edge, float background) {
  const int patch = blockIdx.x * WARPS + warp_id();
  if (patch >= patches) return;
  volume += static_cast<size_t>(patch / count) * channels * nx * ny * nz;
  const int brain = brain_voxels(volume, ids[patch], channels, nx, ny, nz, edge, background);
  const float share = static_cast<float>(brain) / (channels * edge * edge * edge);
  if (lane_id() == 0) weight[patch] = factor ? share * factor[patch] : share;
}

EMU_KERNEL(token_states)
EMU_KERNEL(random_masking)
EMU_KERNEL(kept_of_modality)
EMU_KERNEL(removed_of_modality)
EMU_KERNEL(foreground_weight)
