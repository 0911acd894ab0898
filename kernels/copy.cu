// y = x, bit by bit. A thread takes UNROLL vectors of 16 bytes and has their loads under way at once; the
// thread that meets the end takes what is left one by one. Bound by memory: a read and a write.
#include "ptx.cuh"
#include "vec.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int UNROLL = 4;

template <class T>
__device__ __forceinline__ void copy(const T* __restrict__ x,  // [n]
                                     T* __restrict__ y,        // [n]
                                     int n) {
  constexpr int N = WIDTH<T>;
  const size_t size = n, first = (static_cast<size_t>(blockIdx.x) * UNROLL * THREADS + threadIdx.x) * N;
  uint4 bits[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const size_t at = first + u * THREADS * N;
    if (at + N <= size) bits[u] = load(x + at);
  }
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const size_t at = first + u * THREADS * N;
    if (at + N <= size) {
      store(y + at, bits[u]);
    } else {
#pragma unroll 1
      for (size_t i = at; i < size; i++) y[i] = x[i];
    }
  }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) copy_bf16(
    const bf16* __restrict__ x, bf16* __restrict__ y, int n) {
  copy(x, y, n);
}

extern "C" __global__ void __launch_bounds__(THREADS) copy_f32(
    const float* __restrict__ x, float* __restrict__ y, int n) {
  copy(x, y, n);
}

EMU_KERNEL(copy_bf16)
EMU_KERNEL(copy_f32)
