// A variant of each stored volume: voxels read at affine places by trilinear interpolation over brain voxels alone, then
// shaded (gamma, a smooth field, contrast, brightness, noise). src/ops/augment is the definition; the arithmetic that
// decides which voxels are brain is the same here operation for operation, so that machines agree on it to the bit.
//
// Work split: a block takes a stretch of one sample, a thread four voxels in a row, which share a block of random
// words. Bound by instructions, about 200 a voxel: the eight voxels around a place are mostly in the L1 cache.
// Any extents; where the voxels of a volume are no multiple of four, they are stored one by one.
#include "philox.cuh"
#include "ptx.cuh"

namespace {

constexpr int THREADS = 256;
// The bent grey scale is straight between as many points.
constexpr int STEPS = 256;

struct Volume {
    const __half* __restrict__ voxels;  // [X, Y, Z]
    int nx, ny, nz;
    float background;

    // The value at p, counted from a voxel before the first: the mean of the brain voxels around, by weight.
    __device__ __forceinline__ float at(float px, float py, float pz) const {
        const bool inside =
            px >= 0.0f && px < nx + 1 && py >= 0.0f && py < ny + 1 && pz >= 0.0f && pz < nz + 1;
        if (!inside) return background;
        const int x = int(px), y = int(py), z = int(pz);
        float corner[8];
        int brain = 0;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            corner[c] = voxel(x + (c >> 2), y + (c >> 1 & 1), z + (c & 1));
            brain += corner[c] != background;
        }
        if (brain == 0) return background;
        const float fx = px - x, fy = py - y, fz = pz - z;
        return brain == 8 ? mean_of_all(corner, fx, fy, fz) : mean_of_brain(corner, fx, fy, fz);
    }

    __device__ __forceinline__ float voxel(int x, int y, int z) const {
        // One comparison an axis: what is below 1 wraps round.
        const bool inside = unsigned(x - 1) < unsigned(nx) && unsigned(y - 1) < unsigned(ny) && unsigned(z - 1) < unsigned(nz);
        return inside ? __half2float(voxels[((x - 1) * ny + y - 1) * nz + z - 1]) : background;
    }

    static __device__ __forceinline__ float mix(float a, float b, float f) { return fmaf(b - a, f, a); }

    static __device__ __forceinline__ float mean_of_all(const float (&v)[8], float fx, float fy, float fz) {
        const float near = mix(mix(v[0], v[1], fz), mix(v[2], v[3], fz), fy);
        const float far = mix(mix(v[4], v[5], fz), mix(v[6], v[7], fz), fy);
        return mix(near, far, fx);
    }

    __device__ __forceinline__ float mean_of_brain(const float (&v)[8], float fx, float fy, float fz) const {
        const float sx[2] = {1.0f - fx, fx}, sy[2] = {1.0f - fy, fy}, sz[2] = {1.0f - fz, fz};
        float sum = 0.0f, weight = 0.0f;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            const bool brain = v[c] != background;
            const float xy = sx[c >> 2] * sy[c >> 1 & 1];
            const float z = brain ? sz[c & 1] : 0.0f;
            sum = fmaf(xy * z, brain ? v[c] : 0.0f, sum);
            weight = fmaf(xy, z, weight);
        }
        return weight < 0.5f ? background : sum / weight;
    }
};

// Row i of the affine map at (x, y, 0), counted from a voxel before the first so that cutting off rounds down.
__device__ __forceinline__ float row_start(const float* __restrict__ a /* [4] */, int x, int y) {
    return fmaf(a[1], float(y), fmaf(a[0], float(x), a[3])) + 1.0f;
}

// The coordinate of voxel i of n, from -1 to 1 at the ends of the grid.
__device__ __forceinline__ float unit(int i, int n) {
    const float step = 2.0f / n;
    return fmaf(step, float(i), fmaf(0.5f, step, -1.0f));
}

// 1 plus the polynomial of x, y, z, x², y², z², xy, xz, yz.
__device__ __forceinline__ float bias(const float* __restrict__ c /* [9] */, float x, float y, float z) {
    const float plane = fmaf(c[4], y * y, fmaf(c[3], x * x, fmaf(c[1], y, fmaf(c[0], x, 1.0f))));
    const float b0 = fmaf(c[6], x * y, plane);
    const float b1 = fmaf(c[8], y, fmaf(c[7], x, c[2]));
    return fmaf(fmaf(c[5], z, b1), z, b0);
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t word;
    memcpy(&word, &pair, sizeof word);
    return word;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) augment(
    const __half* __restrict__ stored,    // [B, X, Y, Z]
    const float* __restrict__ affine,     // [B, 3, 4]
    const float* __restrict__ shading,    // [B, 13]: exponent, contrast, brightness, noise, nine of bias
    const uint32_t* __restrict__ noise,   // [B, 6]
    __nv_bfloat16* __restrict__ variant,  // [B, X, Y, Z]
    int nx, int ny, int nz, float background) {
    __shared__ float curve[STEPS + 2];
    const size_t voxels = size_t(nx) * ny * nz;
    const Volume source = {stored + blockIdx.y * voxels, nx, ny, nz, background};
    affine += blockIdx.y * 12;
    shading += blockIdx.y * 13;
    noise += blockIdx.y * STREAM;
    variant += blockIdx.y * voxels;

    bool shaded = false;
    for (int i = 0; i < 13; ++i) shaded |= shading[i] != (i < 2 ? 1.0f : 0.0f);
    const float exponent = shading[0], contrast = shading[1], brightness = shading[2], sd = shading[3];
    const float span = -2.0f * background, floor = background + 0.0625f;
    for (int i = threadIdx.x; i < STEPS + 2; i += THREADS) {
        curve[i] = span * powf(float(i) / STEPS, exponent);
    }
    __syncthreads();

    for (size_t quad = size_t(blockIdx.x) * THREADS + threadIdx.x; 4 * quad < voxels; quad += size_t(gridDim.x) * THREADS) {
        const size_t row = 4 * quad / nz;
        int z = int(4 * quad % nz), y = int(row % ny), x = int(row / ny);
        float value[4], place[4][3];
        bool any = false;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            float p[3];
#pragma unroll
            for (int i = 0; i < 3; ++i) p[i] = fmaf(affine[4 * i + 2], float(z), row_start(affine + 4 * i, x, y));
            value[k] = source.at(p[0], p[1], p[2]);
            any |= value[k] > background;
        }
    }
}
