// Fibers and their schedule.
#include <bit>
#include <cstdarg>
#include <cstdio>

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

// A position of a set bit of `mask`, random but not evenly so: a bit after a gap is more likely.
unsigned random_bit(uint32_t mask, Random& random) {
  const unsigned turn = random.below(32);
  return (std::countr_zero(std::rotr(mask, turn)) + turn) % 32;
}

void switch_context(Cluster& cluster, Context& from, Context& to, bool last = false) {
  cluster.previous = &from;
  sanitizer::begin_switch(from.stack, to.stack, last);
  sanitizer::become(to.actor);
  emu_switch(&from.stack_pointer, to.stack_pointer);
  sanitizer::end_switch(from.stack, cluster.previous->stack);
}

// Gives way to `to`, or to the host if there is no thread to run.
void leave(Fiber& from, Fiber* to, bool last = false) {
  Cluster& cluster = from.block->cluster;
  current = to;
  switch_context(cluster, from.context, to ? to->context : cluster.host, last);
}

// Counts a fiber out; returns the one that runs next.
Fiber* finish(Fiber& fiber) {
  const sanitizer::Quiet quiet;
  Block& block = *fiber.block;
  leave_stores(fiber);
  sanitizer::release(&block.launch);
  fiber.finished = true;
  block.live--;
  block.cluster.live--;
  if (block.live == 0) {
    expect_no_loads(block);
  }
  open_if_complete(block.cluster);
  return block.cluster.next();
}

// Where a fiber begins and ends. No Quiet may be left behind: its actor will be another fiber's.
void fiber_main() {
  Fiber& fiber = me();
  Cluster& cluster = fiber.block->cluster;
  sanitizer::end_switch(sanitizer::Stack(), cluster.previous->stack);
  sanitizer::acquire(&cluster);
  cluster.launch.call(cluster.launch.arguments);
  leave(fiber, finish(fiber), true);
  __builtin_unreachable();
}

}  // namespace

void* begin_stack(unsigned char* end) {
  void** top = reinterpret_cast<void**>(end);
  *--top = nullptr;  // where fiber_main would return to
  *--top = reinterpret_cast<void*>(fiber_main);
  top -= SAVED_REGISTERS;
  std::memset(top, 0, SAVED_REGISTERS * sizeof(void*));
  return top;
}

void run_fibers(Cluster& cluster) {
  Fiber* first = cluster.next();
  current = first;
  switch_context(cluster, cluster.host, first->context);
}

void pause(Wait wait) {
  Fiber& fiber = me();
  fiber.wait = wait;
  Fiber* next = fiber.block->cluster.next();
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
  fiber.block->cluster.error = std::string(where) + message;
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

bool Cluster::early() {
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

Fiber* Cluster::next() {
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

}  // namespace emu
