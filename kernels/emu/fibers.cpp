// Fibers, their schedule, and the blocks of a launch.
#include <sys/mman.h>

#include <atomic>
#include <bit>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <utility>

#include "runtime.hpp"

#ifndef __x86_64__
#error "the emulator switches fibers by hand, and only knows x86-64"
#endif

// void emu_switch(void** save, void* load): leaves the stack in use, whose pointer goes to *save, for the one
// at load. What a function must preserve lies on the stack that is left.
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, . - emu_switch
)");
extern "C" void emu_switch(void** save, void* load);

namespace emu {

__thread Thread* current;

namespace {

constexpr unsigned SAVED_REGISTERS = 6;
constexpr size_t STACK_BYTES = 128 * 1024;
constexpr size_t GUARD_BYTES = 4096;

// Stacks that all began at the same offset of their page would share a few lines of the cache.
constexpr size_t STACK_STAGGER = 832;
constexpr unsigned STACK_STAGGERS = 16;

// A position of a set bit of `mask`, random but not evenly so: a bit after a gap is more likely.
unsigned random_bit(uint32_t mask, Random& random) {
  const unsigned turn = random.below(32);
  return (std::countr_zero(std::rotr(mask, turn)) + turn) % 32;
}

void switch_context(Block& block, Context& from, Context& to, bool last = false) {
  block.previous = &from;
  sanitizer::begin_switch(from.stack, to.stack, last);
  sanitizer::become(to.actor);
  emu_switch(&from.stack_pointer, to.stack_pointer);
  sanitizer::end_switch(from.stack, block.previous->stack);
}

// Gives way to `to`, or to the host if there is no thread to run.
void leave(Fiber& from, Fiber* to, bool last = false) {
  Block& block = *from.block;
  current = to;
  switch_context(block, from.context, to ? to->context : block.host, last);
}

// Counts a fiber out; returns the one that runs next.
Fiber* finish(Fiber& fiber) {
  const sanitizer::Quiet quiet;
  leave_stores(fiber);
  sanitizer::release(&fiber.block->launch);
  fiber.finished = true;
  fiber.block->live--;
  return fiber.block->next();
}

// Where a fiber begins and ends. No Quiet may be left behind: its actor will be another fiber's.
void fiber_main() {
  Fiber& fiber = me();
  Block& block = *fiber.block;
  sanitizer::end_switch(sanitizer::Stack(), block.previous->stack);
  sanitizer::acquire(&block);
  block.launch.call(block.launch.arguments);
  leave(fiber, finish(fiber), true);
  __builtin_unreachable();
}

}  // namespace

void pause(Wait wait) {
  Fiber& fiber = me();
  fiber.wait = wait;
  Fiber* next = fiber.block->next();
  if (next != &fiber) {
    leave(fiber, next);
  }
}

void fail(const char* format, ...) {
  const sanitizer::Quiet quiet;
  char message[512];
  va_list values;
  va_start(values, format);
  vsnprintf(message, sizeof message, format, values);
  va_end(values);
  Fiber& fiber = me();
  const uint3 b = fiber.block_index;
  char where[128];
  snprintf(where, sizeof where, "block (%u, %u, %u), thread %u: ", b.x, b.y, b.z, fiber.number);
  fiber.block->error = std::string(where) + message;
  leave(fiber, nullptr);
  __builtin_unreachable();
}

Ready::Ready(const Settings& settings, Random& random) : seed_(settings.seed), random_(random) {
  for (uint32_t& priority : priority_) {
    priority = random.next();
  }
}

unsigned Ready::take() {
  last_ = choose();
  const unsigned warp = last_ / LANES;
  lanes_[warp] = without(lanes_[warp], last_ % LANES);
  if (lanes_[warp] == 0) {
    warps_ = without(warps_, warp);
  }
  return last_;
}

unsigned Ready::choose() {
  if (seed_ == 0) {
    return choose_in_order();
  }
  if (seed_ % 2 == 0) {
    return choose_by_priority();
  }
  const unsigned warp = random_bit(warps_, random_);
  return warp * LANES + random_bit(lanes_[warp], random_);
}

// The next one after the last.
unsigned Ready::choose_in_order() const {
  const unsigned warp = last_ / LANES;
  const uint32_t above = lanes_[warp] & -(2u << last_ % LANES);
  if (above != 0) {
    return warp * LANES + std::countr_zero(above);
  }
  const unsigned turn = warp + 1;
  const unsigned next = (std::countr_zero(std::rotr(warps_, turn)) + turn) % MAX_WARPS;
  return next * LANES + std::countr_zero(lanes_[next]);
}

unsigned Ready::choose_by_priority() {
  constexpr unsigned CHANGES_EVERY = 2048;
  if (random_.below(CHANGES_EVERY) == 0) {
    priority_[random_.below(MAX_WARPS)] = random_.next();
  }
  unsigned best = std::countr_zero(warps_);
  for (uint32_t rest = warps_ & (warps_ - 1); rest != 0; rest &= rest - 1) {
    const unsigned warp = std::countr_zero(rest);
    if (priority_[warp] > priority_[best]) {
      best = warp;
    }
  }
  return best * LANES + random_bit(lanes_[best], random_);
}

Block::Block(const Launch& launch, uint64_t number)
    : launch(launch),
      random((launch.settings.seed + 1) * 0x9E3779B97F4A7C15ull ^ (number + 1) * 0xD1B54A32D192ED03ull),
      ready(launch.settings, random),
      live(launch.threads) {
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

bool Block::early() {
  switch (launch.settings.async) {
    case AsyncMode::Early:
      return true;
    case AsyncMode::Late:
      return false;
    case AsyncMode::Random:
      return random.below(2) == 0;
  }
  __builtin_unreachable();
}

Fiber* Block::next() {
  constexpr unsigned LOADS_EVERY = 8;
  while (live > 0) {
    const bool arrives =
        ready.empty() || (launch.settings.async == AsyncMode::Random && random.below(LOADS_EVERY) == 0);
    if (!loads.empty() && arrives) {
      finish_a_load(*this);
      continue;
    }
    return ready.empty() ? nullptr : &fibers[ready.take()];
  }
  return nullptr;
}

namespace {

std::string describe(const Fiber& fiber) {
  if (fiber.finished) {
    return "have finished";
  }
  char words[128];
  snprintf(words, sizeof words, fiber.wait.format, fiber.wait.number);
  return std::string("wait at ") + words;
}

// Who waits where, for a block in which no thread can run.
std::string describe_deadlock(const Block& block) {
  constexpr unsigned MOST_SHOWN = 8;
  std::string message = "deadlock:";
  unsigned shown = 0;
  for (unsigned first = 0; first < block.launch.threads && shown < MOST_SHOWN; shown++) {
    const std::string what = describe(block.fibers[first]);
    unsigned end = first + 1;
    while (end < block.launch.threads && describe(block.fibers[end]) == what) {
      end++;
    }
    message += shown ? "; threads " : " threads ";
    message += std::to_string(first) + ".." + std::to_string(end - 1) + " " + what;
    first = end;
  }
  return message;
}

// What one operating-system thread keeps from block to block: fibers and their stacks.
class Worker {
 public:
  explicit Worker(unsigned threads);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  bool serves(unsigned threads) const {
    return threads <= threads_;
  }

  // Runs a block; a message if that failed. Then fibers were left in the middle, and the worker is not to be
  // used again.
  std::string run_block(const Launch& launch, uint64_t number);

 private:
  void prepare(Fiber& fiber, Block& block, unsigned number, unsigned slot, uint3 block_index);

  const unsigned threads_;
  const unsigned slots_;
  unsigned char* stacks_;
  std::vector<sanitizer::Actor> actors_;
  std::vector<Fiber> fibers_;
  Units units_[2];
};

// To ThreadSanitizer a thread of one block and a thread of the next are different threads only if they are
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
  void** top = reinterpret_cast<void**>(stack + STACK_BYTES - slot % STACK_STAGGERS * STACK_STAGGER);
  *--top = nullptr;  // where fiber_main would return to
  *--top = reinterpret_cast<void*>(fiber_main);
  top -= SAVED_REGISTERS;
  std::memset(top, 0, SAVED_REGISTERS * sizeof(void*));
  fiber.context.stack_pointer = top;
  fiber.context.stack = {stack, STACK_BYTES, nullptr};
  fiber.context.actor = actors_[slot];
}

std::string Worker::run_block(const Launch& launch, uint64_t number) {
  const sanitizer::Quiet quiet;
  // On the heap: the tokens of ThreadSanitizer in it end with it.
  auto block = std::make_unique<Block>(launch, number);
  block->fibers = fibers_.data();
  block->host.actor = sanitizer::current_actor();
  block->units = units_[number % std::size(units_)];
  const dim3 grid = launch.grid;
  const unsigned x = number % grid.x;
  const unsigned y = number / grid.x % grid.y;
  const unsigned z = number / grid.x / grid.y;
  for (unsigned i = 0; i < launch.threads; i++) {
    prepare(fibers_[i], *block, i, (i + 7 * number) % slots_, {x, y, z});
    block->ready.add(i / LANES, 1u << i % LANES);
  }
  sanitizer::release(block.get());

  Fiber* first = block->next();
  current = first;
  switch_context(*block, block->host, first->context);

  if (block->error.empty() && block->live > 0) {
    block->error = describe_deadlock(*block);
  }
  if (block->error.empty() && !block->loads.empty()) {
    block->error = "the block ended with TMA loads under way";
  }
  if (block->error.empty()) {
    finish_stores(*block);
  }
  return block->error;
}

// Runs blocks until none is left or one has failed.
class Progress {
 public:
  explicit Progress(const Launch& launch)
      : launch_(launch), blocks_(static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z) {
  }

  void work(std::unique_ptr<Worker>& worker) {
    if (!worker || !worker->serves(launch_.threads)) {
      worker = std::make_unique<Worker>(launch_.threads);
    }
    for (uint64_t number = next_++; number < blocks_; number = next_++) {
      const std::string error = run_block(*worker, number);
      if (!error.empty()) {
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
  std::string run_block(Worker& worker, uint64_t number) {
    if constexpr (!sanitizer::THREAD) {
      return worker.run_block(launch_, number);
    }
    // On a thread of its own: static shared memory is thread-local, so that ThreadSanitizer takes it for new
    // memory.
    std::string error;
    std::thread([&] { error = worker.run_block(launch_, number); }).join();
    return error;
  }

  void stop(const std::string& error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error_.empty()) {
      error_ = error;
    }
    next_ = blocks_;
  }

  const Launch& launch_;
  const uint64_t blocks_;
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
