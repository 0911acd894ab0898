// y[b, ..] = scale[b] x[b, ..]. A block (vectors, sample); a thread takes UNROLL vectors of 8 elements and
// has their loads under way at once. Bound by memory: a read and a write. Samples are a multiple of 8 long.
#include "ptx.cuh"
#include "vec.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int UNROLL = 4;

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) drop_path(
    const bf16* __restrict__ x,       // [B, n]
    const float* __restrict__ scale,  // [B]
    bf16* __restrict__ y,             // [B, n]
    int n) {
  x += static_cast<size_t>(blockIdx.y) * n;
  y += static_cast<size_t>(blockIdx.y) * n;
  const int first = (blockIdx.x * UNROLL * THREADS + threadIdx.x) * 8;
  uint4 bits[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const int at = first + u * THREADS * 8;
    if (at < n) bits[u] = load(x + at);
  }
  const float factor = scale[blockIdx.y];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const int at = first + u * THREADS * 8;
    if (at >= n) continue;
    float v[8];
    unpack(bits[u], v);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] *= factor;
    store(y + at, v);
  }
}

EMU_KERNEL(drop_path)
