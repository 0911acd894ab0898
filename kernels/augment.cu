// A variant of each stored volume: read at the places of an affine map, by trilinear interpolation over brain
// voxels alone, then shaded: gamma, a smooth field, contrast, brightness, noise. src/ops/augment defines it. What
// decides which voxels are brain is the same arithmetic in the same order there and here, so that machines agree.
//
// A block takes a stretch of one sample, a thread four voxels that follow one another and share a block of random
// words. Bound by instructions: of the eight voxels round a place, most are in the L1 cache already. Any extents, up
// to 2^31 voxels.
#include "philox.cuh"
#include "ptx.cuh"
#include "vec.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int STEPS = 256;  // of the bent grey scale, which is straight between them
constexpr int SHADING = 13;

struct Voxel {
  int x, y, z;

  __device__ __forceinline__ void next(int ny, int nz) {
    if (++z < nz) return;
    z = 0;
    if (++y < ny) return;
    y = 0;
    x++;
  }
};

// A stored volume, and between its voxels. Voxels are counted from one before the first along each axis, so that
// what is cut off to an integer is never negative.
struct Source {
  const __half* __restrict__ voxels;  // [X, Y, Z]
  int nx, ny, nz;
  float background;

  __device__ __forceinline__ float voxel(int x, int y, int z) const {
    // One comparison an axis: 0 - 1 is the largest number.
    const bool inside = static_cast<unsigned>(x - 1) < static_cast<unsigned>(nx) &&
                        static_cast<unsigned>(y - 1) < static_cast<unsigned>(ny) &&
                        static_cast<unsigned>(z - 1) < static_cast<unsigned>(nz);
    return inside ? __half2float(voxels[((x - 1) * ny + y - 1) * nz + z - 1]) : background;
  }

  __device__ __forceinline__ float at(float px, float py, float pz) const {
    const bool inside = px >= 0 && px < nx + 1 && py >= 0 && py < ny + 1 && pz >= 0 && pz < nz + 1;
    if (!inside) return background;
    const int x = static_cast<int>(px), y = static_cast<int>(py), z = static_cast<int>(pz);
    float corners[8];
    int brain = 0;
#pragma unroll
    for (int c = 0; c < 8; c++) {
      corners[c] = voxel(x + (c >> 2), y + (c >> 1 & 1), z + (c & 1));
      brain += corners[c] != background;
    }
    if (brain == 0) return background;
    const float fx = px - x, fy = py - y, fz = pz - z;
    return brain == 8 ? mean_of_all(corners, fx, fy, fz) : mean_of_brain(corners, fx, fy, fz);
  }

  static __device__ __forceinline__ float mix(float a, float b, float f) {
    return fmaf(b - a, f, a);
  }

  static __device__ __forceinline__ float mean_of_all(const float (&v)[8], float fx, float fy, float fz) {
    const float near = mix(mix(v[0], v[1], fz), mix(v[2], v[3], fz), fy);
    const float far = mix(mix(v[4], v[5], fz), mix(v[6], v[7], fz), fy);
    return mix(near, far, fx);
  }

  // Background where less than half of the weight is brain's.
  __device__ __forceinline__ float mean_of_brain(const float (&v)[8], float fx, float fy, float fz) const {
    const float sides[3][2] = {{1 - fx, fx}, {1 - fy, fy}, {1 - fz, fz}};
    float sum = 0, weight = 0;
#pragma unroll
    for (int c = 0; c < 8; c++) {
      const bool brain = v[c] != background;
      const float xy = sides[0][c >> 2] * sides[1][c >> 1 & 1];
      const float z = brain ? sides[2][c & 1] : 0;
      sum = fmaf(xy * z, brain ? v[c] : 0, sum);
      weight = fmaf(xy, z, weight);
    }
    return weight < 0.5f ? background : sum / weight;
  }
};

// Where a voxel lies along one axis, by that axis's row of the map [4].
__device__ __forceinline__ float place(const float* __restrict__ map, Voxel v) {
  const float start = fmaf(map[1], v.y, fmaf(map[0], v.x, map[3])) + 1.0f;
  return fmaf(map[2], v.z, start);
}

// The coordinate of voxel i of n, from -1 to 1 at the ends of the grid.
__device__ __forceinline__ float unit(int i, int n) {
  const float step = 2.0f / n;
  return fmaf(step, i, fmaf(0.5f, step, -1.0f));
}

// 1 plus the polynomial of x, y, z, x2, y2, z2, xy, xz, yz with these coefficients [9].
__device__ __forceinline__ float field(const float* __restrict__ c, float x, float y, float z) {
  const float linear = fmaf(c[1], y, fmaf(c[0], x, 1.0f));
  const float plane = fmaf(c[6], x * y, fmaf(c[4], y * y, fmaf(c[3], x * x, linear)));
  const float slope = fmaf(c[8], y, fmaf(c[7], x, c[2]));
  return fmaf(fmaf(c[5], z, slope), z, plane);
}

}  // namespace

// A block (stretch, sample).
extern "C" __global__ void __launch_bounds__(THREADS, 3) augment(
    const __half* __restrict__ stored,   // [B, X, Y, Z]
    const float* __restrict__ affine,    // [B, 3, 4]
    const float* __restrict__ shading,   // [B, 13]: exponent, contrast, brightness, noise, nine of the field
    const uint32_t* __restrict__ noise,  // [B, 6]
    bf16* __restrict__ volume,           // [B, X, Y, Z]
    int nx, int ny, int nz, float background) {
  const uint32_t voxels = nx * ny * nz;
  const size_t before = static_cast<size_t>(blockIdx.y) * voxels;
  const Source source = {stored + before, nx, ny, nz, background};
  affine += blockIdx.y * 12;
  shading += blockIdx.y * SHADING;
  noise += blockIdx.y * STREAM;
  volume += before;

  // The bent grey scale at its points, and one more, which nothing weighs.
  __shared__ float curve[STEPS + 2];
  const float span = -2 * background;
  const float exponent = shading[0], contrast = shading[1], brightness = shading[2], spread = shading[3];
  bool shaded = false;
  for (int i = 0; i < SHADING; i++) shaded |= shading[i] != (i < 2 ? 1.0f : 0.0f);
  for (int i = threadIdx.x; shaded && i < STEPS + 2; i += THREADS) {
    curve[i] = span * powf(static_cast<float>(i) / STEPS, exponent);
  }
  __syncthreads();

  for (uint32_t quad = blockIdx.x * THREADS + threadIdx.x; 4 * quad < voxels; quad += gridDim.x * THREADS) {
    const int row = 4 * quad / nz;
    const Voxel first = {row / ny, row % ny, static_cast<int>(4 * quad % nz)};
    Voxel at = first;
    float v[4];
    bool brain = false;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      v[k] = source.at(place(affine, at), place(affine + 4, at), place(affine + 8, at));
      brain |= v[k] > background;
      at.next(ny, nz);
    }

    if (shaded && brain) {
      const uint4 block = spread > 0 ? philox(noise, quad) : zeros();
      const uint32_t words[4] = {block.x, block.y, block.z, block.w};
      at = first;
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const float lit = field(shading + 4, unit(at.x, nx), unit(at.y, ny), unit(at.z, nz));
        at.next(ny, nz);
        // A voxel that is no number stays so.
        if (!(v[k] > background)) continue;
        const float scaled = fminf((v[k] - background) * (STEPS / span), STEPS);
        const int cell = static_cast<int>(scaled);
        const float bent = Source::mix(curve[cell], curve[cell + 1], scaled - cell);
        const float other = spread > 0 ? fmaf(spread, quick_normal(words[k]), brightness) : brightness;
        const float made = fmaf(fmaf(bent, lit, background), contrast, other);
        // Brain stays above the background, by what bf16 still tells apart.
        v[k] = made < background + 0.0625f ? background + 0.0625f : made > -background ? -background : made;
      }
    }

    if (voxels % 4 == 0) {
      store(volume + 4 * quad, v);
    } else {
      for (int k = 0; k < 4 && 4 * quad + k < voxels; k++) volume[4 * quad + k] = __float2bfloat16_rn(v[k]);
    }
  }
}

EMU_KERNEL(augment)
