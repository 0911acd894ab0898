// The kept patches of volumes as the rows of a matrix, in the order of a patch embedding's weights:
//
//   rows[b K + i] = patch ids[b, i] of volume b, its C p^3 voxels by channel, x, y and z
//
// The embedding is then a linear layer over these rows, and its gradient that of one (linear.cu).
//
// Split of the work: lines of a patch along z are cut into vectors of the most voxels that divide its edge, 8, 4,
// 2 or 1. A warp takes 32 neighbouring vectors of ROWS patches, a vector a lane and patch, with the loads of all
// patches under way before the first is used; consecutive warps take consecutive vectors. Each lane finds its
// vector's place in a patch once, and where one of the patches begins, for all.
//
// Bound by memory: 2 bytes a voxel each way. A line of 16 voxels is a whole sector of 32 bytes, and a warp writes
// 512 bytes in one piece; of edges that are no multiple of 8 it writes less at a time, 256 bytes for 12 and 4.
//
// The axes of a volume are whole numbers of edges; volumes and rows begin at multiples of 16 bytes.
#include "ptx.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 8;  // of a block
constexpr int ROWS = 8;

// A batch of volumes [B, C, x, y, z] that fall into patches.
struct Volumes {
  const bf16* __restrict__ voxels;
  int channels, x, y, z, edge;

  // Where patch `token` of volume `b` begins. Tokens run with the last axis fastest.
  __device__ size_t patch(int b, int token) const {
    const int grid_y = y / edge, grid_z = z / edge;
    const int px = token / (grid_y * grid_z), py = token / grid_z % grid_y, pz = token % grid_z;
    const size_t plane = static_cast<size_t>(b) * channels * x + px * edge;
    return (plane * y + py * edge) * z + pz * edge;
  }
  // Where value `i` of a patch lies from there.
  __device__ size_t value(int i) const {
    const int line = i / edge, plane = line / edge, channel = plane / edge;
    return (static_cast<size_t>(channel * x + plane % edge) * y + line % edge) * z + i % edge;
  }
};

// In vectors V.
template <class V>
__device__ __forceinline__ void gather(
    const Volumes& volumes, const uint32_t* ids, bf16* rows, int count, int kept) {
  constexpr int N = sizeof(V) / sizeof(bf16);
  const int values = volumes.channels * volumes.edge * volumes.edge * volumes.edge;
  const int pieces = (values + 32 * N - 1) / (32 * N);
  const int warp = blockIdx.x * WARPS + warp_id(), first = warp / pieces * ROWS;
  if (first >= count) return;

  const int own = min(first + lane_id() % ROWS, count - 1);
  const size_t begin = volumes.patch(own / kept, ids[own]);
  const int col = (warp % pieces * 32 + lane_id()) * N;
  const bf16* voxels = volumes.voxels + volumes.value(col);
  V from[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const size_t patch = __shfl_sync(~0u, begin, r);
    if (col < values) from[r] = *vector_at<const V>(voxels + patch);
  }
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const size_t row = first + r;
    if (row < count && col < values) *vector_at<V>(rows + row * values + col) = from[r];
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS) patch_rows(
    const bf16* __restrict__ voxels,   // [B, C, x, y, z]
    const uint32_t* __restrict__ ids,  // [B, K]
    bf16* __restrict__ rows,           // [B K, C edge^3]
    int count, int kept, int channels, int x, int y, int z, int edge) {
  const Volumes volumes = {voxels, channels, x, y, z, edge};
  if (edge % 8 == 0) {
    gather<uint4>(volumes, ids, rows, count, kept);
  } else if (edge % 4 == 0) {
    gather<uint2>(volumes, ids, rows, count, kept);
  } else if (edge % 2 == 0) {
    gather<uint32_t>(volumes, ids, rows, count, kept);
  } else {
    gather<bf16>(volumes, ids, rows, count, kept);
  }
}

EMU_KERNEL(patch_rows)
