// The embedding of the patches that are kept, a strided 3-D convolution at these alone, and its gradients:
//
//   patch_embed         y[i] = w patch(i) + b
//   patch_embed_grad    dw = sum over i of dy[i] patch(i)^T, db = sum over i of dy[i], over a split of the
//                       patches (split_sum in linear.cu adds the splits)
//   patch_places        where each patch begins, and where its voxels lie from there, which both read
//
// patch(i) has C p^3 voxels, in the order of w. They are gathered from the volume as tiles are filled, so
// that the matrix of all patches is in no memory. The products are those of gemm.cuh; Large tiles take
// patches whose edge p is a multiple of 8 (8 voxels along z are one copy), Small ones any.
#include "gemm.cuh"

using namespace gemm;

// The matrix of patches [rows, cols], as gemm.cuh takes one: element (row, col) lies at starts[row] +
// offsets[col].
struct PatchRows {
  const bf16* volumes;
  const uint32_t *starts, *offsets;
  int rows, cols, edge;

  __device__ __forceinline__ bf16 element(int row, int col) const {
    return volumes[starts[row] + offsets[col]];
  }
  __device__ __forceinline__ bool in_eights() const { return edge % 8 == 0; }

  // Stays in the matrix's last row and eight columns where it would leave them.
  struct Walk {
    const PatchRows& patches;
    int row, col;

    __device__ __forceinline__ Walk(const PatchRows& patches, int row, int col)
        : patches(patches), row(row), col(col) {}
    __device__ __forceinline__ const bf16* address() const {
      const uint32_t start = patches.starts[min(row, patches.rows - 1)];
      return patches.volumes + (start + patches.offsets[min(col, (patches.cols - 1) / 8 * 8)]);
    }
    __device__ __forceinline__ void down(int rows) { row += rows; }
    __device__ __forceinline__ void right(int cols) { col += cols; }
  };
};

// Tokens, and the voxels of a patch, run with the last axis fastest.
extern "C" __global__ void __launch_bounds__(256) patch_places(
    const uint32_t* __restrict__ ids,  // [rows]: which of its volume's patches
    uint32_t* __restrict__ starts,     // [rows]: a patch's first voxel in volumes
    uint32_t* __restrict__ offsets,    // [channels edge^3]: a voxel of a patch, from its first
    int rows, int kept, int channels, int x, int y, int z, int edge) {
  const int i = blockIdx.x * 256 + threadIdx.x;
  if (i < rows) {
    const int token = ids[i], grid_y = y / edge, grid_z = z / edge;
    const int px = token / (grid_y * grid_z), py = token / grid_z % grid_y, pz = token % grid_z;
    const uint32_t plane = i / kept * channels * x + px * edge;
    starts[i] = (plane * y + py * edge) * z + pz * edge;
  }
  if (i < channels * edge * edge * edge) {
    const int line = i / edge, plane = line / edge, channel = plane / edge;
    offsets[i] = ((channel * x + plane % edge) * y + line % edge) * z + i % edge;
  }
}

template <class Tile>
__device__ __forceinline__ void embed(
    const PatchRows& patches, const bf16* w, const float* b, bf16* y, int n) {
  affine<Tile>(patches, w, b, n, [&](int row, int col, const float (&values)[8]) {
    store_eight<Tile>(y + static_cast<size_t>(row) * n + col, n - col, values);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) patch_embed(
    const bf16* __restrict__ volumes,      // [B, C, X, Y, Z]
    const uint32_t* __restrict__ starts,   // [rows]
    const uint32_t* __restrict__ offsets,  // [k]
    const bf16* __restrict__ w,            // [n, k]
    const float* __restrict__ b,           // [n]
    bf16* __restrict__ y,                  // [rows, n]
    int rows, int n, int k, int edge) {
  embed<Large>({volumes, starts, offsets, rows, k, edge}, w, b, y, n);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) patch_embed_small(
    const bf16* __restrict__ volumes,      // [B, C, X, Y, Z]
    const uint32_t* __restrict__ starts,   // [rows]
    const uint32_t* __restrict__ offsets,  // [k]
    const bf16* __restrict__ w,            // [n, k]
    const float* __restrict__ b,           // [n]
    bf16* __restrict__ y,                  // [rows, n]
    int rows, int n, int k, int edge) {
  embed<Small>({volumes, starts, offsets, rows, k, edge}, w, b, y, n);
}

// Split blockIdx.y takes `split` rows.
template <class Tile>
__device__ __forceinline__ void split_embed_grad(
    const bf16* dy, PatchRows patches, float* dw, float* db, int n, int split, int stride) {
  const int from = blockIdx.y * split;
  patches.rows = min(patches.rows, from + split);
  weight_grad<Tile>(dy, patches, dw, db, n, from, stride);
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) patch_embed_grad(
    const bf16* __restrict__ volumes,      // [B, C, X, Y, Z]
    const uint32_t* __restrict__ starts,   // [rows]
    const uint32_t* __restrict__ offsets,  // [k]
    const bf16* __restrict__ dy,           // [rows, n]
    float* __restrict__ dw,                // [n, k], of each split
    float* __restrict__ db,                // [n], of each split
    int rows, int n, int k, int edge, int split, int stride) {
  split_embed_grad<Large>(dy, {volumes, starts, offsets, rows, k, edge}, dw, db, n, split, stride);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) patch_embed_grad_small(
    const bf16* __restrict__ volumes,      // [B, C, X, Y, Z]
    const uint32_t* __restrict__ starts,   // [rows]
    const uint32_t* __restrict__ offsets,  // [k]
    const bf16* __restrict__ dy,           // [rows, n]
    float* __restrict__ dw,                // [n, k], of each split
    float* __restrict__ db,                // [n], of each split
    int rows, int n, int k, int edge, int split, int stride) {
  split_embed_grad<Small>(dy, {volumes, starts, offsets, rows, k, edge}, dw, db, n, split, stride);
}

EMU_KERNEL(patch_places)
EMU_KERNEL(patch_embed)
EMU_KERNEL(patch_embed_small)
EMU_KERNEL(patch_embed_grad)
EMU_KERNEL(patch_embed_grad_small)
