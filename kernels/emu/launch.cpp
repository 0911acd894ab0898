// The clusters and blocks of a launch, and who runs them.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "runtime.hpp"

namespace emu {

Cluster::Cluster(const Launch& launch, uint64_t number)
    : launch(launch),
      random((launch.settings.seed + 1) * 0x9E3779B97F4A7C15ull ^ (number + 1) * 0xD1B54A32D192ED03ull),
      ready(launch.settings, random),
      live(launch.cluster * launch.threads) {
}

Block::Block(Cluster& cluster, unsigned rank, const Units& units)
    : cluster(cluster),
      launch(cluster.launch),
      rank(rank),
      first_warp(rank * launch.threads / LANES),
      live(launch.threads),
      units(units) {
  // Allocated anew for each block, so that ThreadSanitizer takes it for new memory.
  const size_t bytes = (launch.shared_bytes / SHARED_ALIGNMENT + 1) * SHARED_ALIGNMENT;
  shared = static_cast<unsigned char*>(std::aligned_alloc(SHARED_ALIGNMENT, bytes));
  if (shared == nullptr) {
    throw std::bad_alloc();
  }
  // NaN, in every float format: what is read before it was written shows.
  std::memset(shared, 0xFF, launch.shared_bytes);
  sanitizer::forbid(shared + launch.shared_bytes, bytes - launch.shared_bytes);
}

Block::~Block() {
  sanitizer::allow(shared, launch.shared_bytes + SHARED_ALIGNMENT);
  std::free(shared);
}

namespace {

constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t GUARD_BYTES = 4096;

// Stacks that all began at the same offset of their page would share a few lines of the cache.
constexpr size_t STACK_STAGGER = 832;
constexpr unsigned STACK_STAGGERS = 16;

std::string describe(const Fiber& fiber) {
  if (fiber.finished) {
    return "have finished";
  }
  char words[128];
  snprintf(words, sizeof words, fiber.wait.format, fiber.wait.number);
  return std::string("wait at ") + words;
}

// Who waits where, of one block.
std::string describe_threads(const Fiber* fibers, unsigned threads) {
  constexpr unsigned MOST_SHOWN = 8;
  std::string message;
  unsigned shown = 0;
  for (unsigned first = 0; first < threads && shown < MOST_SHOWN; shown++) {
    const std::string what = describe(fibers[first]);
    unsigned end = first + 1;
    while (end < threads && describe(fibers[end]) == what) {
      end++;
    }
    message += shown ? "; threads " : " threads ";
    message += std::to_string(first) + ".." + std::to_string(end - 1) + " " + what;
    first = end;
  }
  return message;
}

// For a cluster in which no thread can run.
std::string describe_deadlock(const Cluster& cluster) {
  const unsigned threads = cluster.launch.threads;
  std::string message = "deadlock:";
  for (const auto& block : cluster.blocks) {
    if (cluster.blocks.size() > 1) {
      message += block->rank ? "; block " : " block ";
      message += std::to_string(block->rank) + " of the cluster:";
    }
    message += describe_threads(cluster.fibers + block->rank * threads, threads);
  }
  return message;
}

// What one operating-system thread keeps from cluster to cluster: fibers and their stacks.
class Worker {
 public:
  explicit Worker(unsigned threads);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  bool serves(unsigned threads) const {
    return threads <= threads_;
  }

  // Runs a cluster; a message if that failed. Then fibers were left in the middle, and the worker is not to be
  // used again.
  std::string run_cluster(const Launch& launch, uint64_t number);

 private:
  void prepare(Fiber& fiber, Block& block, unsigned number, unsigned slot, uint3 block_index);

  const unsigned threads_;
  const unsigned slots_;
  unsigned char* stacks_;
  std::vector<sanitizer::Actor> actors_;
  std::vector<Fiber> fibers_;
  Units units_[2 * MAX_CLUSTER];  // so that two clusters one after the other have other ones
};

// To ThreadSanitizer a thread of one cluster and a thread of the next are different threads only if they are
// different actors: with more actors than threads, few have the same in both.
Worker::Worker(unsigned threads)
    : threads_(threads), slots_(sanitizer::THREAD ? threads + 37 : threads), fibers_(threads) {
  void* memory = mmap(nullptr, slots_ * STACK_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::bad_alloc();
  }
  stacks_ = static_cast<unsigned char*>(memory);
  for (unsigned slot = 0; slot < slots_; slot++) {
    mprotect(stacks_ + slot * STACK_BYTES, GUARD_BYTES, PROT_NONE);
    actors_.push_back(sanitizer::new_actor());
  }
  for (Units& units : units_) {
    units = {sanitizer::new_actor(), sanitizer::new_actor(), sanitizer::new_actor(), sanitizer::new_actor()};
  }
}

Worker::~Worker() {
  sanitizer::allow(stacks_, slots_ * STACK_BYTES);
  munmap(stacks_, slots_ * STACK_BYTES);
}

void Worker::prepare(Fiber& fiber, Block& block, unsigned number, unsigned slot, uint3 block_index) {
  fiber.thread_index = {number, 0, 0};
  fiber.block_index = block_index;
  fiber.block_size = dim3(block.launch.threads);
  fiber.grid_size = block.launch.grid;
  fiber.number = number;
  fiber.lane = number % LANES;
  fiber.warp = number / LANES;
  fiber.block = &block;
  fiber.wait = Wait();
  fiber.finished = false;
  fiber.copies.clear();
  fiber.stores.clear();

  unsigned char* stack = stacks_ + slot * STACK_BYTES;
  fiber.context.stack_pointer = begin_stack(stack + STACK_BYTES - slot % STACK_STAGGERS * STACK_STAGGER);
  fiber.context.stack = {stack, STACK_BYTES, nullptr};
  fiber.context.actor = actors_[slot];
}

std::string Worker::run_cluster(const Launch& launch, uint64_t number) {
  const sanitizer::Quiet quiet;
  // On the heap: the tokens of ThreadSanitizer in it end with it.
  auto cluster = std::make_unique<Cluster>(launch, number);
  cluster->fibers = fibers_.data();
  cluster->host.actor = sanitizer::current_actor();
  const unsigned threads = launch.threads;
  const dim3 grid = launch.grid;
  for (unsigned rank = 0; rank < launch.cluster; rank++) {
    const uint64_t of_grid = number * launch.cluster + rank;
    auto block = std::make_unique<Block>(*cluster, rank, units_[of_grid % std::size(units_)]);
    const unsigned x = of_grid % grid.x;
    const unsigned y = of_grid / grid.x % grid.y;
    const unsigned z = of_grid / grid.x / grid.y;
    for (unsigned i = 0; i < threads; i++) {
      const unsigned of_cluster = rank * threads + i;
      prepare(fibers_[of_cluster], *block, i, (of_cluster + 7 * number) % slots_, {x, y, z});
      block->wake(i / LANES, 1u << i % LANES);
    }
    cluster->blocks.push_back(std::move(block));
  }
  sanitizer::release(cluster.get());

  run_fibers(*cluster);

  // Threads that were left in the middle have ended, too.
  for (unsigned i = 0; i < launch.cluster * threads; i++) {
    if (!fibers_[i].finished) {
      const sanitizer::ActAs thread(fibers_[i].context.actor);
      sanitizer::release(&launch);
    }
  }
  if (cluster->error.empty() && cluster->live > 0) {
    cluster->error = describe_deadlock(*cluster);
  }
  if (cluster->error.empty()) {
    finish_stores(*cluster);
  }
  return cluster->error;
}

// Runs clusters until none is left or one has failed.
class Progress {
 public:
  explicit Progress(const Launch& launch)
      : launch_(launch),
        clusters_(static_cast<uint64_t>(launch.grid.x) / launch.cluster * launch.grid.y * launch.grid.z) {
  }

  void work(std::unique_ptr<Worker>& worker) {
    const unsigned threads = launch_.cluster * launch_.threads;
    if (!worker || !worker->serves(threads)) {
      worker = std::make_unique<Worker>(threads);
    }
    for (uint64_t number = next_++; number < clusters_; number = next_++) {
      const std::string error = run_cluster(*worker, number);
      if (!error.empty()) {
        sanitizer::acquire(&launch_);
        worker.reset();
        stop(error);
        return;
      }
    }
  }

  std::string error() const {
    return error_;
  }

 private:
  std::string run_cluster(Worker& worker, uint64_t number) {
    if constexpr (!sanitizer::THREAD) {
      return worker.run_cluster(launch_, number);
    }
    // On a thread of its own: static shared memory is thread-local, so that ThreadSanitizer takes it for new
    // memory.
    std::string error;
    std::thread([&] { error = worker.run_cluster(launch_, number); }).join();
    return error;
  }

  void stop(const std::string& error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_.empty()) {
      error_ = error;
    }
    next_ = clusters_;
  }

  const Launch& launch_;
  const uint64_t clusters_;
  std::atomic<uint64_t> next_{0};
  std::mutex mutex_;
  std::string error_;
};

}  // namespace

std::string run(const Launch& launch) {
  static std::vector<std::unique_ptr<Worker>> workers;
  workers.resize(std::max<size_t>(workers.size(), launch.settings.workers));
  Progress progress(launch);
  std::vector<std::thread> helpers;
  for (unsigned i = 1; i < launch.settings.workers; i++) {
    helpers.emplace_back([&progress, &worker = workers[i]] { progress.work(worker); });
  }
  progress.work(workers[0]);
  for (std::thread& helper : helpers) {
    helper.join();
  }
  sanitizer::acquire(&launch);
  return progress.error();
}

}  // namespace emu
