// The emulator as a C library.
#include <algorithm>
#include <cstdio>
#include <map>
#include <mutex>

#include "runtime.hpp"

namespace emu {

namespace {

struct Kernel {
  Call call;
  std::vector<size_t> parameters;  // their sizes
  unsigned cluster;                // blocks
};

// In a function, as kernels register before main, in any order.
std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> table;
  return table;
}

const Kernel* find(const char* name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : &found->second;
}

thread_local Settings settings;

std::string check(const Launch& launch) {
  const dim3 grid = launch.grid;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7FFFFFFF || grid.y > 65535 || grid.z > 65535) {
    return "the grid has no such size";
  }
  if (launch.threads == 0 || launch.threads > MAX_THREADS) {
    return "the block has " + std::to_string(launch.threads) + " threads, not 1 to 1024";
  }
  if (launch.shared_bytes > MAX_SHARED_BYTES) {
    return std::to_string(launch.shared_bytes) + " bytes of shared memory, of at most 232448";
  }
  if (launch.cluster > 1) {
    const std::string cluster = "clusters of " + std::to_string(launch.cluster) + " blocks";
    if (grid.x % launch.cluster != 0) {
      return "the grid is not whole " + cluster;
    }
    if (launch.cluster > MAX_CLUSTER) {
      return cluster + ", of at most 8";
    }
    if (launch.threads % LANES != 0 || launch.cluster * launch.threads > MAX_THREADS) {
      return cluster + " are emulated of whole warps and at most 1024 threads, not of " +
             std::to_string(launch.threads) + " threads each";
    }
  }
  return "";
}

std::string launch(const char* name, Launch launch) {
  // Static shared memory is one for all launches, and so are the workers.
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const Kernel* kernel = find(name);
  if (kernel == nullptr) {
    return "no such kernel";
  }
  launch.call = kernel->call;
  launch.cluster = kernel->cluster;
  const std::string error = check(launch);
  return error.empty() ? run(launch) : error;
}

}  // namespace

void Registration::add(const char* name, Call call, const size_t* sizes, size_t parameters, unsigned cluster) {
  const bool added = kernels().emplace(name, Kernel{call, {sizes, sizes + parameters}, cluster}).second;
  if (!added) {
    fprintf(stderr, "emulator: there are two kernels `%s`\n", name);
    abort();
  }
}

}  // namespace emu

extern "C" {

// For the launches of the calling thread, from now on: clusters of blocks that run at a time (1 under a sanitizer), the
// schedule's seed, and when asynchronous work takes effect (0 early, 1 late, 2 at random).
void emu_configure(uint32_t workers, uint64_t seed, uint32_t async_mode) {
  const auto mode = static_cast<emu::AsyncMode>(std::min(async_mode, 2u));
#if defined(EMU_ASAN) || defined(EMU_TSAN)
  workers = 1;
#endif
  emu::settings = {std::max(workers, 1u), seed, mode};
}

// How many parameters a kernel has, and the sizes of at most `max` of them; -1 if there is no such kernel.
int32_t emu_parameters(const char* name, size_t* sizes, size_t max) {
  const emu::Kernel* kernel = emu::find(name);
  if (kernel == nullptr) {
    return -1;
  }
  const std::vector<size_t>& all = kernel->parameters;
  std::copy_n(all.begin(), std::min(all.size(), max), sizes);
  return static_cast<int32_t>(all.size());
}

// Runs a kernel to its end, with pointers to its arguments as cuLaunchKernel takes them. 0; or 1 and a
// message of less than `message_bytes`.
int32_t emu_launch(const char* name, const uint32_t grid[3], uint32_t threads, size_t shared_bytes,
                   void* const* arguments, char* message, size_t message_bytes) {
  const emu::Launch launch{nullptr, arguments,    dim3(grid[0], grid[1], grid[2]), 1,
                           threads, shared_bytes, emu::settings};
  const std::string error = emu::launch(name, launch);
  if (error.empty()) {
    return 0;
  }
  snprintf(message, message_bytes, "kernel `%s`: %s", name, error.c_str());
  return 1;
}

// A tensor map (128 bytes, aligned to 128) as cuTensorMapEncodeTiled makes it, of rank 1 to 3, with 128-byte
// swizzle or none. Extents and box in elements, x first; strides in bytes, from y on. 0; or 1 where the
// driver would refuse, too.
int32_t emu_tensor_map(void* map, uint32_t element_bytes, uint32_t rank, const void* tensor,
                       const uint64_t* extent, const uint64_t* stride, const uint32_t* box,
                       uint32_t swizzle_128b) {
  constexpr uint32_t MOST_BOX = 256;
  if (rank < 1 || rank > 3 || reinterpret_cast<uintptr_t>(tensor) % 16 != 0) {
    return 1;
  }
  const uint64_t row_bytes = static_cast<uint64_t>(box[0]) * element_bytes;
  if (row_bytes % 16 != 0 || (swizzle_128b != 0 && row_bytes > 128)) {
    return 1;
  }
  TensorMap encoded{TensorMap::MAGIC, element_bytes, swizzle_128b, {1, 1, 1}, tensor, {1, 1, 1}, {0, 0}};
  for (uint32_t i = 0; i < rank; i++) {
    if (box[i] == 0 || box[i] > MOST_BOX || extent[i] == 0) {
      return 1;
    }
    encoded.box[i] = box[i];
    encoded.extent[i] = extent[i];
  }
  for (uint32_t i = 0; i + 1 < rank; i++) {
    if (stride[i] % 16 != 0) {
      return 1;
    }
    encoded.stride[i] = stride[i];
  }
  std::memcpy(map, &encoded, sizeof encoded);
  return 0;
}

}  // extern "C"
