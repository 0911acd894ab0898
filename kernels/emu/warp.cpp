// What the lanes of a warp, and the threads of a block or a cluster, do together.
#include <algorithm>
#include <bit>
#include <utility>

#include "runtime.hpp"

namespace emu {

namespace {

const char* const COLLECTIVES[] = {"__syncwarp(%08x)", "a shuffle (mask %08x)", "a vote (mask %08x)",
                                   "mma.sync (mask %08x)", "ldmatrix (mask %08x)", "stmatrix (mask %08x)"};

// The meeting of the lanes of `mask`: one that has begun, or a new one.
Meeting& join(Warp& warp, uint32_t mask, Collective kind) {
  Meeting* free = nullptr;
  for (Meeting& meeting : warp.meetings) {
    if (meeting.arrived == 0) {
      free = &meeting;
      continue;
    }
    if (meeting.mask == mask) {
      if (meeting.kind != kind) {
        fail("the warp has diverged: lanes %08x of mask %08x are at another instruction", meeting.arrived,
             mask);
      }
      return meeting;
    }
    if ((meeting.mask & mask) != 0) {
      fail("the warp has diverged: the mask is %08x here, %08x with lanes %08x", mask, meeting.mask,
           meeting.arrived);
    }
  }
  if (free == nullptr) {
    fail("more than %zu masks at once in a warp are not emulated", std::size(warp.meetings));
  }
  free->mask = mask;
  free->kind = kind;
  return *free;
}

// The full mask stands for all lanes there are, also in a last warp that is not full.
uint32_t lanes_of(const Fiber& fiber, uint32_t mask) {
  const unsigned lanes = std::min(LANES, fiber.block->launch.threads - fiber.warp * LANES);
  const uint32_t existing = ~0u >> (LANES - lanes);
  if (mask == ~0u) {
    return existing;
  }
  if ((mask & ~existing) != 0) {
    fail("the mask %08x names lanes that the warp does not have", mask);
  }
  if ((mask >> fiber.lane & 1) == 0) {
    fail("lane %u is not in its mask %08x", fiber.lane, mask);
  }
  return mask;
}

}  // namespace

void warp_collective(Collective kind, uint32_t mask, WarpOperation operation, void* argument) {
  const sanitizer::Quiet quiet;
  Fiber& fiber = me();
  Block& block = *fiber.block;
  Warp& warp = block.warps[fiber.warp];
  mask = lanes_of(fiber, mask);
  Meeting& meeting = join(warp, mask, kind);
  meeting.arrived |= 1u << fiber.lane;
  meeting.lanes[fiber.lane] = argument;
  // Only __syncwarp orders memory; the others merely exchange registers.
  const char* token = meeting.token.get();
  if (kind == Collective::SyncWarp) {
    sanitizer::release(token);
  }
  if (meeting.arrived == mask) {
    if (operation != nullptr) {
      operation(mask, meeting.lanes);
    }
    meeting.arrived = 0;
    meeting.token.next();
    block.wake(fiber.warp, without(mask, fiber.lane));
  } else {
    pause({COLLECTIVES[static_cast<int>(kind)], mask});
  }
  if (kind == Collective::SyncWarp) {
    sanitizer::acquire(token);
  }
}

void shuffle(uint32_t mask, void* const* lanes) {
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const unsigned lane = std::countr_zero(rest);
    Shuffle& to = *static_cast<Shuffle*>(lanes[lane]);
    if ((mask >> to.source & 1) == 0) {
      fail("a shuffle: lane %u reads lane %u, which is not in the mask %08x", lane, to.source, mask);
    }
    to.received = static_cast<const Shuffle*>(lanes[to.source])->value;
  }
}

void ballot(uint32_t mask, void* const* lanes) {
  uint32_t result = 0;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const unsigned lane = std::countr_zero(rest);
    result |= static_cast<uint32_t>(static_cast<const Ballot*>(lanes[lane])->predicate) << lane;
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    static_cast<Ballot*>(lanes[std::countr_zero(rest)])->result = result;
  }
}

namespace {

// All have come: lets those go that wait, and begins the next phase.
void open(Barrier& barrier, Ready& ready) {
  barrier.arrived = 0;
  barrier.token.next();
  for (unsigned warp = 0; warp < MAX_WARPS; warp++) {
    ready.add(warp, std::exchange(barrier.waiting[warp], 0));
  }
}

}  // namespace

void block_barrier(unsigned number, unsigned threads, bool wait) {
  const sanitizer::Quiet quiet;
  Fiber& fiber = me();
  Block& block = *fiber.block;
  if (number >= MAX_BARRIERS) {
    fail("barrier %u: there are %u", number, MAX_BARRIERS);
  }
  if (threads == 0) {
    threads = block.launch.threads;
  }
  if (threads % LANES != 0 && threads != block.launch.threads) {
    fail("barrier %u: %u threads are not whole warps", number, threads);
  }
  Barrier& barrier = block.barriers[number];
  if (barrier.arrived > 0 && barrier.expected != threads) {
    fail("barrier %u: for %u threads here, for %u where others wait", number, threads, barrier.expected);
  }
  barrier.expected = threads;
  const char* token = barrier.token.get();
  sanitizer::release(token);
  barrier.arrived++;
  if (barrier.arrived == threads) {
    open(barrier, block.cluster.ready);
  } else if (wait) {
    barrier.waiting[block.first_warp + fiber.warp] |= 1u << fiber.lane;
    pause({"barrier %u", number});
  }
  if (wait) {
    sanitizer::acquire(token);
  }
}

uint32_t cluster_rank() {
  return me().block->rank;
}

void cluster_barrier() {
  const sanitizer::Quiet quiet;
  Fiber& fiber = me();
  Cluster& cluster = fiber.block->cluster;
  Barrier& barrier = cluster.barrier;
  const char* token = barrier.token.get();
  sanitizer::release(token);
  barrier.arrived++;
  if (!open_if_complete(cluster)) {
    barrier.waiting[fiber.block->first_warp + fiber.warp] |= 1u << fiber.lane;
    pause({"the barrier of the cluster"});
  }
  sanitizer::acquire(token);
}

bool open_if_complete(Cluster& cluster) {
  const unsigned arrived = cluster.barrier.arrived;
  const bool complete = arrived > 0 && arrived == cluster.live;
  if (complete) {
    open(cluster.barrier, cluster.ready);
  }
  return complete;
}

void fence() {
  static char token;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  // ThreadSanitizer does not follow fences. Taken here to order everything before any fence before everything
  // after a later one, whichever atomic operation links the two.
  sanitizer::release(&token);
  sanitizer::acquire(&token);
}

namespace {

// The low or the high one of two bf16.
float half_of(uint32_t pair, unsigned half) {
  return emu_bit_cast<float>(half ? pair & 0xFFFF0000u : pair << 16);
}

}  // namespace

void mma(uint32_t mask, void* const* lanes) {
  if (mask != ~0u) {
    fail("mma.sync needs a whole warp");
  }
  using Row = float __attribute__((vector_size(8 * sizeof(float))));
  float a[16][16];
  Row b[16];
  Row c[16];
  for (unsigned lane = 0; lane < LANES; lane++) {
    const Mma& from = *static_cast<const Mma*>(lanes[lane]);
    const unsigned group = lane / 4;
    const unsigned pair = lane % 4 * 2;
    for (unsigned half = 0; half < 2; half++) {
      for (unsigned r = 0; r < 4; r++) {
        a[group + r % 2 * 8][pair + half + r / 2 * 8] = half_of(from.a[r], half);
      }
      for (unsigned r = 0; r < 2; r++) {
        b[pair + half + r * 8][group] = half_of(from.b[r], half);
        c[group + r * 8][pair + half] = from.c[r * 2 + half];
      }
    }
  }
  for (unsigned m = 0; m < 16; m++) {
    Row sum = c[m];
    for (unsigned k = 0; k < 16; k++) {
      sum += a[m][k] * b[k];
    }
    c[m] = sum;
  }
  for (unsigned lane = 0; lane < LANES; lane++) {
    float* to = static_cast<const Mma*>(lanes[lane])->c;
    for (unsigned r = 0; r < 4; r++) {
      to[r] = c[lane / 4 + r / 2 * 8][lane % 4 * 2 + r % 2];
    }
  }
}

namespace {

constexpr size_t MATRIX_ROW_BYTES = 16;

unsigned char* matrix_row(uint32_t address) {
  if (address % MATRIX_ROW_BYTES != 0) {
    fail("ldmatrix or stmatrix: the row at shared address 0x%x is not aligned to 16 bytes", address);
  }
  return shared_pointer(address, MATRIX_ROW_BYTES);
}

}  // namespace

void read_matrix_row(uint16_t (&row)[8], uint32_t address) {
  const sanitizer::Quiet quiet;
  const unsigned char* from = matrix_row(address);
  sanitizer::read(from, sizeof row);
  std::memcpy(row, from, sizeof row);
}

void ldmatrix(uint32_t mask, void* const* lanes) {
  if (mask != ~0u) {
    fail("ldmatrix needs a whole warp");
  }
  const Ldmatrix& first = *static_cast<const Ldmatrix*>(lanes[0]);
  for (unsigned matrix = 0; matrix < first.matrices; matrix++) {
    const auto row = [&](unsigned r) {
      return static_cast<const Ldmatrix*>(lanes[matrix * 8 + r])->row;
    };
    for (unsigned lane = 0; lane < LANES; lane++) {
      const unsigned group = lane / 4;
      const unsigned pair = lane % 4 * 2;
      const uint32_t low = first.transpose ? row(pair)[group] : row(group)[pair];
      const uint32_t high = first.transpose ? row(pair + 1)[group] : row(group)[pair + 1];
      static_cast<Ldmatrix*>(lanes[lane])->received[matrix] = low | high << 16;
    }
  }
}

void stmatrix(uint32_t mask, void* const* lanes) {
  if (mask != ~0u) {
    fail("stmatrix needs a whole warp");
  }
  for (unsigned named = 0; named < LANES; named++) {
    uint16_t(&row)[8] = static_cast<Stmatrix*>(lanes[named])->row;
    for (unsigned column = 0; column < 8; column++) {
      const unsigned holder = named % 8 * 4 + column / 2;
      const uint32_t pair = static_cast<const Stmatrix*>(lanes[holder])->brought[named / 8];
      row[column] = pair >> column % 2 * 16;
    }
  }
}

void write_matrix_row(uint32_t address, const uint16_t (&row)[8]) {
  const sanitizer::Quiet quiet;
  unsigned char* to = matrix_row(address);
  sanitizer::write(to, sizeof row);
  std::memcpy(to, row, sizeof row);
}

}  // namespace emu
