// Shared memory, cp.async and mbarrier.
#include "runtime.hpp"

namespace emu {

void* dynamic_shared() {
  return me().block->shared;
}

uint32_t shared_address(const void* pointer) {
  const Block& block = *me().block;
  const size_t offset = static_cast<const unsigned char*>(pointer) - block.shared;
  if (offset > block.launch.shared_bytes) {
    fail("smem_u32: %p is not in dynamic shared memory", pointer);
  }
  return SHARED_WINDOW + offset;
}

unsigned char* shared_pointer(const Block& block, uint32_t address, size_t bytes) {
  if (address < SHARED_WINDOW || address - SHARED_WINDOW + bytes > block.launch.shared_bytes) {
    fail(
        "the %zu bytes at shared address 0x%x are not in the block's %zu bytes (from 0x%x) of dynamic shared "
        "memory",
        bytes, address, block.launch.shared_bytes, SHARED_WINDOW);
  }
  return block.shared + (address - SHARED_WINDOW);
}

unsigned char* shared_pointer(uint32_t address, size_t bytes) {
  return shared_pointer(*me().block, address, bytes);
}

Block& block_of_cluster(unsigned rank) {
  const auto& blocks = me().block->cluster.blocks;
  if (rank >= blocks.size()) {
    fail("the cluster has no block %u", rank);
  }
  Block& block = *blocks[rank];
  if (block.live == 0) {
    fail("block %u of the cluster has ended, and its shared memory with it", rank);
  }
  return block;
}

namespace {

void finish(const Copy& copy) {
  sanitizer::read(copy.from, copy.read);
  sanitizer::write(copy.to, copy.bytes);
  std::memcpy(copy.to, copy.from, copy.read);
  std::memset(static_cast<unsigned char*>(copy.to) + copy.read, 0, copy.bytes - copy.read);
}

}  // namespace

void async_copy(uint32_t to, const void* from, unsigned bytes, unsigned read) {
  const sanitizer::Quiet quiet;
  if (to % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0) {
    fail("cp.async: a copy of %u bytes from %p to shared address 0x%x is not aligned", bytes, from, to);
  }
  if (read > bytes) {
    fail("cp.async: %u bytes read for %u copied", read, bytes);
  }
  if (sanitizer::forbidden(from, read)) {
    fail("cp.async: the %u bytes at %p are not all readable", read, from);
  }
  const Copy copy{shared_pointer(to, bytes), from, bytes, read};
  Fiber& fiber = me();
  if (fiber.block->cluster.early()) {
    finish(copy);
    return;
  }
  // The destination is taken from here on; it will be written at the wait.
  sanitizer::read(from, read);
  sanitizer::write(copy.to, bytes);
  fiber.copies.issue(copy);
}

void async_copy_commit() {
  const sanitizer::Quiet quiet;
  me().copies.commit();
}

void async_copy_wait(unsigned pending) {
  const sanitizer::Quiet quiet;
  me().copies.wait(pending, finish);
}

namespace {

// An mbarrier, which lies in shared memory as 64 bits: 20 of pending, 20 of arrivals, 23 of bytes, 1 of
// phase.
struct Mbarrier {
  unsigned pending;
  unsigned arrivals;
  int bytes;  // expected and not yet come; below zero where they came before they were expected
  uint32_t phase;

  static constexpr uint64_t MASK_20 = (1 << 20) - 1;
  static constexpr uint64_t MASK_23 = (1 << 23) - 1;
  static constexpr int BYTES_BIAS = 1 << 22;
  static constexpr unsigned MOST_ARRIVALS = 2048;

  static Mbarrier load(const uint64_t* from) {
    const uint64_t bits = *from;
    Mbarrier barrier;
    barrier.pending = bits & MASK_20;
    barrier.arrivals = bits >> 20 & MASK_20;
    barrier.bytes = static_cast<int>(bits >> 40 & MASK_23) - BYTES_BIAS;
    barrier.phase = bits >> 63;
    if (barrier.arrivals == 0 || barrier.arrivals > MOST_ARRIVALS) {
      fail("mbarrier: not initialised");
    }
    return barrier;
  }

  void store(uint64_t* to) const {
    *to = pending | static_cast<uint64_t>(arrivals) << 20 | static_cast<uint64_t>(bytes + BYTES_BIAS) << 40 |
          static_cast<uint64_t>(phase) << 63;
  }
};

// Stands for what ended the phase of this parity: one address for each, as in PhaseToken.
const void* phase_token(const uint64_t* barrier, uint32_t parity) {
  return reinterpret_cast<const char*>(barrier) + parity;
}

void wake_waiting(Block& block, const uint64_t* barrier, uint32_t phase) {
  std::erase_if(block.mbarrier_waits, [&](const MbarrierWait& wait) {
    const bool over = wait.barrier == barrier && wait.parity != phase;
    if (over) {
      block.wake(wait.fiber->warp, 1u << wait.fiber->lane);
    }
    return over;
  });
}

}  // namespace

uint64_t* mbarrier_at(const Block& block, uint32_t address) {
  if (address % sizeof(uint64_t) != 0) {
    fail("mbarrier: shared address 0x%x is not aligned to 8 bytes", address);
  }
  return reinterpret_cast<uint64_t*>(shared_pointer(block, address, sizeof(uint64_t)));
}

const void* mbarrier_token(const uint64_t* barrier) {
  return phase_token(barrier, Mbarrier::load(barrier).phase);
}

void update_mbarrier(Block& block, uint64_t* at, unsigned arrivals, int bytes) {
  Mbarrier barrier = Mbarrier::load(at);
  if (arrivals > barrier.pending) {
    fail("mbarrier: more arrivals than its %u", barrier.arrivals);
  }
  barrier.pending -= arrivals;
  barrier.bytes += bytes;
  const bool complete = barrier.pending == 0 && barrier.bytes == 0;
  if (complete) {
    barrier.phase ^= 1;
    barrier.pending = barrier.arrivals;
  }
  barrier.store(at);
  if (complete) {
    wake_waiting(block, at, barrier.phase);
  }
}

void mbarrier_init(uint32_t address, unsigned arrivals) {
  const sanitizer::Quiet quiet;
  if (arrivals == 0 || arrivals > Mbarrier::MOST_ARRIVALS) {
    fail("mbarrier: %u arrivals", arrivals);
  }
  Mbarrier{arrivals, arrivals, 0, 0}.store(mbarrier_at(*me().block, address));
}

namespace {

void arrive(Block& block, uint32_t address, uint32_t expected_bytes) {
  uint64_t* at = mbarrier_at(block, address);
  sanitizer::release(mbarrier_token(at));
  update_mbarrier(block, at, 1, static_cast<int>(expected_bytes));
}

}  // namespace

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
  const sanitizer::Quiet quiet;
  arrive(*me().block, address, expected_bytes);
}

void mbarrier_arrive_remote(uint32_t address, uint32_t rank) {
  const sanitizer::Quiet quiet;
  arrive(block_of_cluster(rank), address, 0);
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
  const sanitizer::Quiet quiet;
  Fiber& fiber = me();
  const uint64_t* at = mbarrier_at(*fiber.block, address);
  if (Mbarrier::load(at).phase == parity) {
    fiber.block->mbarrier_waits.push_back({&fiber, at, parity});
    pause({"the mbarrier at shared address 0x%x", address});
  }
  sanitizer::acquire(phase_token(at, parity));
}

}  // namespace emu
