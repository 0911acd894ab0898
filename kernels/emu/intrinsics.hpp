// The built-in functions of CUDA that kernels use, on the CPU. Part of emu.hpp.
#pragma once

inline void __syncthreads() {
  emu::block_barrier(0, 0, true);
}

inline void __syncwarp(uint32_t mask = ~0u) {
  emu::warp_collective(emu::Collective::SyncWarp, mask, nullptr, nullptr);
}

[[noreturn]] inline void __trap() {
  emu::fail("__trap()");
}

namespace emu {

// Orders what this thread wrote before what it does next, for ThreadSanitizer too.
void fence();

struct Shuffle {
  uint64_t value;
  uint64_t received;
  unsigned source;
};
void shuffle(uint32_t mask, void* const* lanes);

template <class T>
T shuffle_from(uint32_t mask, T value, unsigned source) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  Shuffle lane{0, 0, source};
  std::memcpy(&lane.value, &value, sizeof(T));
  warp_collective(Collective::Shuffle, mask, shuffle, &lane);
  T received;
  std::memcpy(&received, &lane.received, sizeof(T));
  return received;
}

struct Ballot {
  bool predicate;
  uint32_t result;
};
void ballot(uint32_t mask, void* const* lanes);

inline unsigned lane() {
  return current->thread_index.x % 32;
}

}  // namespace emu

inline void __threadfence() {
  emu::fence();
}

inline void __threadfence_block() {
  emu::fence();
}

// Shuffles within groups of `width` lanes; a lane whose source lies outside its group keeps its own value.

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32) {
  const unsigned group = emu::lane() & ~(width - 1);
  return emu::shuffle_from(mask, value, group | (source & (width - 1)));
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes, int width = 32) {
  const unsigned lane = emu::lane();
  const unsigned end = (lane & ~(width - 1)) + width;
  const unsigned source = lane ^ lanes;
  return emu::shuffle_from(mask, value, source < end ? source : lane);
}

template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned lanes, int width = 32) {
  const unsigned lane = emu::lane();
  const unsigned end = (lane & ~(width - 1)) + width;
  return emu::shuffle_from(mask, value, lane + lanes < end ? lane + lanes : lane);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned lanes, int width = 32) {
  const unsigned lane = emu::lane();
  const unsigned begin = lane & ~(width - 1);
  return emu::shuffle_from(mask, value, lane >= begin + lanes ? lane - lanes : lane);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  emu::Ballot lane{predicate != 0, 0};
  emu::warp_collective(emu::Collective::Ballot, mask, emu::ballot, &lane);
  return lane.result;
}

inline int __any_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

inline int __all_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}

// Atomics on integers. Sums of floats have one fixed order, which atomics do not.

template <class T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>, "no float atomics: the sum would depend on the order of the threads");
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  return __atomic_exchange_n(at, value, __ATOMIC_RELAXED);
}

template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}

template <class T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < value &&
         !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (value < old &&
         !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

// Counts up to `limit`, then starts again at 0.
inline unsigned atomicInc(unsigned* at, unsigned limit) {
  unsigned old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(at, &old, old >= limit ? 0 : old + 1, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}

// Loads and stores with a hint to the caches.

template <class T>
T __ldg(const T* from) {
  return *from;
}

template <class T>
T __ldca(const T* from) {
  return *from;
}

template <class T>
T __ldcg(const T* from) {
  return *from;
}

template <class T>
T __ldcs(const T* from) {
  return *from;
}

template <class T>
void __stcg(T* to, std::type_identity_t<T> value) {
  *to = value;
}

template <class T>
void __stcs(T* to, std::type_identity_t<T> value) {
  *to = value;
}

// Bits.

template <class To, class From>
To emu_bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

inline float __int_as_float(int bits) {
  return emu_bit_cast<float>(bits);
}

inline float __uint_as_float(unsigned bits) {
  return emu_bit_cast<float>(bits);
}

inline int __float_as_int(float value) {
  return emu_bit_cast<int>(value);
}

inline unsigned __float_as_uint(float value) {
  return emu_bit_cast<unsigned>(value);
}

inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}

inline int __ffs(int bits) {
  return __builtin_ffs(bits);
}

inline int __clz(int bits) {
  return bits ? __builtin_clz(bits) : 32;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<uint64_t>(a) * b >> 32;
}

inline int __mulhi(int a, int b) {
  return static_cast<int64_t>(a) * b >> 32;
}

// Arithmetic. The fast functions are here as good as the exact ones: their errors are a matter for a GPU.

inline float __expf(float x) {
  return std::exp(x);
}

inline float __logf(float x) {
  return std::log(x);
}

inline float __log2f(float x) {
  return std::log2(x);
}

inline float __frcp_rn(float x) {
  return 1.0f / x;
}

inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}

// Rounded by itself, also where an addition or a multiplication follows: the asm keeps the compiler from
// fusing them.
inline float __fadd_rn(float a, float b) {
  float sum = a + b;
  asm("" : "+x"(sum));
  return sum;
}

inline float __fmul_rn(float a, float b) {
  float product = a * b;
  asm("" : "+x"(product));
  return product;
}

inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}

inline float __saturatef(float x) {
  return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f;
}

inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}

inline float fdividef(float a, float b) {
  return a / b;
}

inline int __float2int_rn(float x) {
  return static_cast<int>(std::nearbyint(x));
}

inline int __float2int_rd(float x) {
  return static_cast<int>(std::floor(x));
}

// CUDA has these for all pairs of integer types, and for floats, where the one that is a number wins over
// NaN.

template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmin(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
  }
}

template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmax(static_cast<T>(a), static_cast<T>(b));
  } else {
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
  }
}
