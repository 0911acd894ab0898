// The embedding of the patches that are kept, a strided 3-D convolution at these alone, and its gradients:
//
//   patch_embed         y[i] = w patch(i) + b
//   patch_embed_grad    dw = sum over i of dy[i] patch(i)^T, db = sum over i of dy[i], over a split of the rows
//                       (split_sum in linear.cu adds them)
//   patch_origins       where patch(i) begins, which both read
//
// patch(i) is a row of C p^3 voxels, in the order of w: it is gathered from the volume as a tile of it is needed, so that
// the matrix of all patches is in no memory. The products are those of gemm.cuh; Large tiles take patches whose edge is a
// multiple of 8 (along z, 8 voxels are one copy), Small ones any.
#include "gemm.cuh"

using namespace gemm;

// The matrix of patches: a Matrix to gemm.cuh.
struct PatchRows {
  const bf16* base;       // [B, C, X, Y, Z]
  const size_t* origins;  // [rows]: the voxel at which a patch begins
  int rows, cols;         // patches, and voxels in each
  int edge, y, z;
  size_t channel;  // voxels of a channel

  __device__ __forceinline__ const bf16* row(int r) const { return base + (r < rows ? origins[r] : 0); }
  __device__ __forceinline__ size_t offset(int c) const {
    const int line = c / edge, p1 = line % edge, p0 = line / edge % edge, from = line / edge / edge;
    return from * channel + static_cast<size_t>(p0 * y + p1) * z + c % edge;
  }
  __device__ __forceinline__ bool in_eights() const { return edge % 8 == 0; }
};

__device__ __forceinline__ PatchRows patch_rows(
    const bf16* volume, const size_t* origins, int rows, int channels, int x, int y, int z, int edge) {
  return {volume, origins, rows, channels * edge * edge * edge, edge, y, z, static_cast<size_t>(x) * y * z};
}

// Tokens run with the last axis fastest.
extern "C" __global__ void __launch_bounds__(256) patch_origins(
    const uint32_t* __restrict__ ids,  // [rows]: which of a volume's patches
    size_t* __restrict__ origins,      // [rows]
    int rows, int kept, int channels, int x, int y, int z, int edge) {
  const int row = blockIdx.x * 256 + threadIdx.x;
  if (row >= rows) return;
  const int token = ids[row], grid_y = y / edge, grid_z = z / edge;
  const int px = token / (grid_y * grid_z), py = token / grid_z % grid_y, pz = token % grid_z;
  const size_t sample = static_cast<size_t>(row / kept) * channels * x;
  origins[row] = ((sample + px * edge) * y + py * edge) * z + pz * edge;
}

template <class Tile>
__device__ __forceinline__ void embed(const PatchRows& patches, const bf16* w, const float* b, bf16* y, int n) {
  affine<Tile>(patches, w, b, n, [&](int row, int col, const float (&values)[8]) {
    store_eight<Tile>(y + static_cast<size_t>(row) * n + col, n - col, values);
  });
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) patch_embed(
    const bf16* __restrict__ volume,     // [B, channels, x, y, z]
    const size_t* __restrict__ origins,  // [rows]
    const bf16* __restrict__ w,          // [n, channels edge^3]
    const float* __restrict__ b,         // [n]
    bf16* __restrict__ out,              // [rows, n]
    int rows, int n, int channels, int x, int y, int z, int edge) {
  embed<Large>(patch_rows(volume, origins, rows, channels, x, y, z, edge), w, b, out, n);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) patch_embed_small(
    const bf16* __restrict__ volume,     // [B, channels, x, y, z]
    const size_t* __restrict__ origins,  // [rows]
    const bf16* __restrict__ w,          // [n, channels edge^3]
    const float* __restrict__ b,         // [n]
    bf16* __restrict__ out,              // [rows, n]
    int rows, int n, int channels, int x, int y, int z, int edge) {
  embed<Small>(patch_rows(volume, origins, rows, channels, x, y, z, edge), w, b, out, n);
}

extern "C" __global__ void __launch_bounds__(THREADS, Large::BLOCKS_PER_PROCESSOR) patch_embed_grad(
    const bf16* __restrict__ volume,     // [B, channels, x, y, z]
    const size_t* __restrict__ origins,  // [rows]
    const bf16* __restrict__ dy,         // [rows, n]
    float* __restrict__ dw,              // [n, channels edge^3], of each split
    float* __restrict__ db,              // [n], of each split
    int rows, int n, int channels, int x, int y, int z, int edge, int split_rows, int stride) {
  const PatchRows patches = patch_rows(volume, origins, rows, channels, x, y, z, edge);
  weight_grad<Large>(dy, patches, dw, db, n, split_rows, stride);
}

extern "C" __global__ void __launch_bounds__(THREADS, Small::BLOCKS_PER_PROCESSOR) patch_embed_grad_small(
    const bf16* __restrict__ volume,     // [B, channels, x, y, z]
    const size_t* __restrict__ origins,  // [rows]
    const bf16* __restrict__ dy,         // [rows, n]
    float* __restrict__ dw,              // [n, channels edge^3], of each split
    float* __restrict__ db,              // [n], of each split
    int rows, int n, int channels, int x, int y, int z, int edge, int split_rows, int stride) {
  const PatchRows patches = patch_rows(volume, origins, rows, channels, x, y, z, edge);
  weight_grad<Small>(dy, patches, dw, db, n, split_rows, stride);
}

EMU_KERNEL(patch_origins)
EMU_KERNEL(patch_embed)
EMU_KERNEL(patch_embed_small)
EMU_KERNEL(patch_embed_grad)
EMU_KERNEL(patch_embed_grad_small)
