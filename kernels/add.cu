// y = a + b. A thread takes UNROLL vectors of 16 bytes and has their loads under way at once; the thread that
// meets the end takes what is left one by one. Bound by memory: two reads and a write.
#include "ptx.cuh"
#include "vec.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int UNROLL = 2;

template <class T>
__device__ __forceinline__ void add(const T* __restrict__ a,  // [n]
                                    const T* __restrict__ b,  // [n]
                                    T* __restrict__ y,        // [n]
                                    int n) {
  constexpr int N = WIDTH<T>;
  const size_t size = n, first = (static_cast<size_t>(blockIdx.x) * UNROLL * THREADS + threadIdx.x) * N;
  uint4 as[UNROLL], bs[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const size_t at = first + u * THREADS * N;
    if (at + N > size) continue;
    as[u] = load(a + at);
    bs[u] = load(b + at);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const size_t at = first + u * THREADS * N;
    if (at + N <= size) {
      float x[N], z[N];
      unpack(as[u], x);
      unpack(bs[u], z);
#pragma unroll
      for (int i = 0; i < N; i++) x[i] += z[i];
      store(y + at, x);
    } else {
#pragma unroll 1
      for (size_t i = at; i < size; i++) y[i] = static_cast<float>(a[i]) + static_cast<float>(b[i]);
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) add_bf16(
    const bf16* __restrict__ a, const bf16* __restrict__ b, bf16* __restrict__ y, int n) {
  add(a, b, y, n);
}

extern "C" __global__ void __launch_bounds__(THREADS) add_f32(
    const float* __restrict__ a, const float* __restrict__ b, float* __restrict__ y, int n) {
  add(a, b, y, n);
}

EMU_KERNEL(add_bf16)
EMU_KERNEL(add_f32)
