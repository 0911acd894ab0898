// The optimiser's passes over flat ranges of f32 that hold every parameter, gradient or moment. All are bound
// by memory: a thread takes UNROLL vectors of 4 and has their loads under way at once. Ranges are a multiple
// of 4 long.
//
// Numbers that change from step to step (learning rate, bias corrections, clip factor, decay) are read from
// memory, so that a recorded launch can be replayed.
#include "ptx.cuh"
#include "reduce.cuh"
#include "vec.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int UNROLL = 2;

// The first element of vector u of this thread.
__device__ __forceinline__ size_t place(int u) {
  return ((static_cast<size_t>(blockIdx.x) * UNROLL + u) * THREADS + threadIdx.x) * 4;
}

// A run of parameters [from, to) that are updated alike; laid out as in src/ops/optimiser.rs.
struct Range {
  uint32_t from, to;
  float decay, rate;
};

// In ascending order. Elements between them are left alone.
struct Ranges {
  Range at[64];
  int count;
};

struct Constants {
  float beta1, beta2, fresh1, fresh2, eps;  // fresh = 1 - beta
};

}  // namespace

// Sums of squares: blocks walk over the gradients and leave their sums. 4 bytes read an element.
extern "C" __global__ void __launch_bounds__(THREADS) grad_norm(
    const float* __restrict__ grads,  // [n]
    float* __restrict__ parts,        // [gridDim.x]
    int n) {
  constexpr int LOADS = 4;  // under way at once
  const size_t size = n, stride = static_cast<size_t>(gridDim.x) * THREADS * 4;
  float total = 0;
  const size_t first = (static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x) * 4;
  for (size_t at = first; at < size; at += LOADS * stride) {
    uint4 bits[LOADS];
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      const size_t place = at + u * stride;
      bits[u] = place < size ? load(grads + place) : zeros();
    }
#pragma unroll
    for (int u = 0; u < LOADS; u++) {
      float g[4];
      unpack(bits[u], g);
#pragma unroll
      for (int i = 0; i < 4; i++) g[i] *= g[i];
      total += sum(g);
    }
  }
  total = block_sum(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// norm = sqrt(sum of parts), factor = min(1, max_norm / (norm + 1e-6)); one block.
extern "C" __global__ void __launch_bounds__(THREADS) grad_norm_factor(
    const float* __restrict__ parts,  // [count]
    float* __restrict__ norm,         // []
    float* __restrict__ factor,       // []
    int count, float max_norm) {
  double total = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) total += parts[i];
  const double root = sqrt(block_sum(total));
  if (threadIdx.x == 0) {
    norm[0] = static_cast<float>(root);
    factor[0] = static_cast<float>(fmin(max_norm / (root + 1e-6), 1.0));
  }
}

// AdamW, with g = factor grads and the step's rate = schedule[0] range.rate:
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2,
//   p = (1 - rate decay) p - rate / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps).
// All ranges in one launch. 16 bytes read and 14 written an element.
extern "C" __global__ void __launch_bounds__(THREADS) adamw(
    float* __restrict__ params,           // [n], the masters
    bf16* __restrict__ copies,            // [n], of the masters, or null
    const float* __restrict__ grads,      // [n]
    float* __restrict__ m,                // [n]
    float* __restrict__ v,                // [n]
    const float* __restrict__ factor,     // []
    const float* __restrict__ schedule,   // [3]: the learning rate, 1 - beta1^t, 1 - beta2^t
    int n, const Constants constants, const __grid_constant__ Ranges ranges) {
  const size_t size = n;
  uint4 ps[UNROLL], gs[UNROLL], ms[UNROLL], vs[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const size_t at = place(u);
    if (at >= size) continue;
    ps[u] = load_once(params + at);
    gs[u] = load_once(grads + at);
    ms[u] = load_once(m + at);
    vs[u] = load_once(v + at);
  }
  const float clip = factor[0], rate = schedule[0], step = rate / schedule[1], root = 1 / sqrtf(schedule[2]);

#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    const size_t at = place(u);
    // The last range that begins at or before this vector.
    int low = 0;
    for (int high = ranges.count; high - low > 1;) {
      const int middle = (low + high) / 2;
      (ranges.at[middle].from <= at ? low : high) = middle;
    }
    const Range range = ranges.at[low];
    if (at < range.from || at >= range.to) continue;

    const float keep = 1 - rate * range.rate * range.decay, pace = step * range.rate;
    float p[4], g[4], first[4], second[4];
    unpack(ps[u], p);
    unpack(gs[u], g);
    unpack(ms[u], first);
    unpack(vs[u], second);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      g[i] *= clip;
      first[i] = constants.beta1 * first[i] + constants.fresh1 * g[i];
      second[i] = constants.beta2 * second[i] + constants.fresh2 * g[i] * g[i];
      p[i] = keep * p[i] - pace * first[i] / (sqrtf(second[i]) * root + constants.eps);
    }
    store_once(params + at, p);
    if (copies != nullptr) store(copies + at, p);
    store_once(m + at, first);
    store_once(v + at, second);
  }
}

// average = decay average + (1 - decay) params. 8 bytes read and 4 written an element.
extern "C" __global__ void __launch_bounds__(THREADS) ema(
    const float* __restrict__ params,  // [n]
    float* __restrict__ average,       // [n]
    const float* __restrict__ decay,   // []
    int n) {
  const size_t size = n;
  uint4 ps[UNROLL], as[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    if (place(u) >= size) continue;
    ps[u] = load_once(params + place(u));
    as[u] = load_once(average + place(u));
  }
  const float keep = decay[0];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    if (place(u) >= size) continue;
    float p[4], a[4];
    unpack(ps[u], p);
    unpack(as[u], a);
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = keep * a[i] + (1 - keep) * p[i];
    store_once(average + place(u), a);
  }
}

// sum = keep sum + grads. 8 bytes read and 4 written an element.
extern "C" __global__ void __launch_bounds__(THREADS) accumulate(
    const float* __restrict__ grads,  // [n]
    float* __restrict__ sum,          // [n]
    const float* __restrict__ keep,   // []
    int n) {
  const size_t size = n;
  uint4 gs[UNROLL], ss[UNROLL];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    if (place(u) >= size) continue;
    gs[u] = load_once(grads + place(u));
    ss[u] = load_once(sum + place(u));
  }
  const float factor = keep[0];
#pragma unroll
  for (int u = 0; u < UNROLL; u++) {
    if (place(u) >= size) continue;
    float g[4], s[4];
    unpack(gs[u], g);
    unpack(ss[u], s);
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = factor * s[i] + g[i];
    store(sum + place(u), s);
  }
}

EMU_KERNEL(grad_norm)
EMU_KERNEL(grad_norm_factor)
EMU_KERNEL(adamw)
EMU_KERNEL(ema)
EMU_KERNEL(accumulate)
