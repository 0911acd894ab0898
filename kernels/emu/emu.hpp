// CUDA C++ on the CPU: what a kernel file sees when it is compiled as C++ with -DCUDA_EMU.
//
// A CUDA thread is a fiber, and the fibers of a block, or of the blocks of a cluster, take turns on one
// operating-system thread, so a kernel runs here as written: divergence, barriers and warp operations included.
// Whatever is not emulated does not compile, or ends the launch with a message. Of the memory only the dynamic
// shared one has shared addresses (ptx::smem_u32).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// NVIDIA's headers give these attributes that only nvcc knows.
#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __cluster_dims__
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)

// Static shared memory: one copy for each operating-system thread, which is for each running block. Kernels in clusters
// must have none, as the blocks of a cluster run on one thread.
#ifdef EMU_ASAN
// AddressSanitizer guards the ends of global variables, but not those of thread-local ones; it runs one block
// at a time.
#define __shared__ static
#else
#define __shared__ static thread_local
#endif

#define DYN_SMEM(Type, name) Type* name = static_cast<Type*>(emu::dynamic_shared())
#define EMU_KERNEL(kernel) EMU_KERNEL_IN_CLUSTERS(kernel, 1)
#define EMU_KERNEL_IN_CLUSTERS(kernel, blocks) \
  static const emu::Registration emu_registration_##kernel(#kernel, emu::Entry<kernel>(), blocks);

namespace emu {

// Where a CUDA thread is.
struct Thread {
  uint3 thread_index;
  uint3 block_index;
  dim3 block_size;
  dim3 grid_size;
};

// The CUDA thread that runs now.
extern __thread Thread* current;

// Ends the launch with a message. The thread that called does not go on.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

inline void expect_aligned(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) {
    fail("a vector of %zu bytes at %p, which is not a multiple of its size", bytes, pointer);
  }
}

void* dynamic_shared();
uint32_t shared_address(const void* pointer);

// Waits at named barrier `barrier` for `threads` threads (0: all of the block); only counts itself in if not
// `wait`.
void block_barrier(unsigned barrier, unsigned threads, bool wait);

uint32_t cluster_rank();
void cluster_barrier();

enum class Collective { SyncWarp, Shuffle, Ballot, Mma, Ldmatrix, Stmatrix };

// What a warp operation does: runs once, when the lanes of `mask` have all come; lane l brought lanes[l].
using WarpOperation = void (*)(uint32_t mask, void* const* lanes);
void warp_collective(Collective kind, uint32_t mask, WarpOperation operation, void* argument);

// How a kernel is called and what it takes: with an array of pointers to arguments, as cuLaunchKernel does.
using Call = void (*)(void* const* arguments);

template <auto Kernel>
struct Entry;

template <class... Parameters, void (*Kernel)(Parameters...)>
struct Entry<Kernel> {
  static constexpr std::array<size_t, sizeof...(Parameters)> sizes{sizeof(Parameters)...};

  static void call(void* const* arguments) {
    unpack(arguments, std::index_sequence_for<Parameters...>());
  }

 private:
  template <size_t... I>
  static void unpack([[maybe_unused]] void* const* arguments, std::index_sequence<I...>) {
    Kernel(load<Parameters>(arguments[I])...);
  }

  // A copy, as the caller's argument need not be aligned.
  template <class T>
  static T load(const void* argument) {
    static_assert(std::is_trivially_copyable_v<T>, "kernel parameters are copied byte by byte");
    alignas(T) unsigned char bytes[sizeof(T)];
    std::memcpy(bytes, argument, sizeof(T));
    return *reinterpret_cast<T*>(bytes);
  }
};

// Makes a kernel known by its name, and by how many blocks its clusters have.
class Registration {
 public:
  template <auto Kernel>
  Registration(const char* name, Entry<Kernel> entry, unsigned cluster) {
    add(name, entry.call, entry.sizes.data(), entry.sizes.size(), cluster);
  }

 private:
  static void add(const char* name, Call call, const size_t* sizes, size_t parameters, unsigned cluster);
};

}  // namespace emu

#define threadIdx (emu::current->thread_index)
#define blockIdx (emu::current->block_index)
#define blockDim (emu::current->block_size)
#define gridDim (emu::current->grid_size)

#include "intrinsics.hpp"
