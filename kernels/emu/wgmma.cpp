// wgmma: products of a warpgroup, which run beside it until it waits.
#include "runtime.hpp"

namespace emu {

namespace {

constexpr unsigned ROWS = 64;
constexpr unsigned DEPTH = 16;
constexpr unsigned MOST_COLUMNS = 256;

const char* const COLLECTIVES[] = {"wgmma (warpgroup %u)", "wgmma.commit_group (warpgroup %u)",
                                   "wgmma.wait_group (warpgroup %u)"};

// Runs `operation` once all threads of the warpgroup have come. Orders no memory.
template <class Operation>
void warpgroup_collective(GroupCollective kind, void* argument, Operation operation) {
  Fiber& fiber = me();
  Block& block = *fiber.block;
  const unsigned number = fiber.number / WARPGROUP;
  if ((number + 1) * WARPGROUP > block.launch.threads) {
    fail("wgmma needs a whole warpgroup");
  }
  Warpgroup& group = block.warpgroups[number];
  if (group.arrived > 0 && group.kind != kind) {
    fail("the warpgroup has diverged: some threads are at another wgmma instruction");
  }
  group.kind = kind;
  group.threads[fiber.number % WARPGROUP] = argument;
  group.arrived++;
  if (group.arrived < WARPGROUP) {
    pause({COLLECTIVES[static_cast<int>(kind)], number});
    return;
  }
  operation(group);
  group.arrived = 0;
  for (unsigned warp = fiber.warp / 4 * 4; warp < fiber.warp / 4 * 4 + 4; warp++) {
    block.wake(warp, warp == fiber.warp ? without(~0u, fiber.lane) : ~0u);
  }
}

// The fields of a matrix descriptor, in bytes.
struct Descriptor {
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3FFF) << 4),
        lead((bits >> 16 & 0x3FFF) << 4),
        stride((bits >> 32 & 0x3FFF) << 4),
        swizzle(bits >> 62) {
  }

  // The address of an element. Along K a row is 128 bytes and `stride` leads to the next 8 rows; along M or N
  // a k is 128 bytes, `stride` leads to the next 8 k and `lead` to the next 64 rows.
  uint32_t address(unsigned row, unsigned k, bool transpose) const {
    const uint32_t plain = transpose ? start + row % 64 * 2 + row / 64 * lead + k % 8 * 128 + k / 8 * stride
                                     : start + k * 2 + row % 8 * 128 + row / 8 * stride;
    return plain ^ (plain >> 7 & 7) << 4;
  }

  uint32_t start;
  uint32_t lead;
  uint32_t stride;
  uint32_t swizzle;
};

struct Operands {
  float a[ROWS][DEPTH];
  float b[DEPTH][MOST_COLUMNS];
};

float load(const Descriptor& descriptor, unsigned row, unsigned k, bool transpose) {
  uint16_t element;
  const unsigned char* from = shared_pointer(descriptor.address(row, k, transpose), sizeof element);
  sanitizer::read(from, sizeof element);
  std::memcpy(&element, from, sizeof element);
  return emu_bit_cast<float>(static_cast<uint32_t>(element) << 16);
}

// What the threads hold of a: register r of a thread is two neighbours along k.
void load_registers(Operands& operands, const PendingWgmma& product) {
  for (unsigned thread = 0; thread < WARPGROUP; thread++) {
    for (unsigned r = 0; r < 4; r++) {
      const unsigned row = thread / 32 * 16 + thread % 32 / 4 + r % 2 * 8;
      const unsigned k = thread % 4 * 2 + r / 2 * 8;
      const uint32_t pair = product.a[thread][r];
      operands.a[row][k] = emu_bit_cast<float>(pair << 16);
      operands.a[row][k + 1] = emu_bit_cast<float>(pair & 0xFFFF0000);
    }
  }
}

void load(Operands& operands, const PendingWgmma& product) {
  constexpr unsigned SWIZZLE_128B = 1;
  const Wgmma& operation = product.operation;
  const Descriptor a(operation.a);
  const Descriptor b(operation.b);
  const bool a_in_registers = operation.a_registers != nullptr;
  if ((!a_in_registers && a.swizzle != SWIZZLE_128B) || b.swizzle != SWIZZLE_128B) {
    fail("wgmma: only tiles with 128-byte swizzle are emulated");
  }
  if (a_in_registers) {
    load_registers(operands, product);
  }
  for (unsigned k = 0; k < DEPTH; k++) {
    for (unsigned m = 0; m < ROWS && !a_in_registers; m++) {
      operands.a[m][k] = load(a, m, k, operation.transpose_a);
    }
    for (unsigned n = 0; n < operation.n; n++) {
      operands.b[k][n] = load(b, n, k, operation.transpose_b);
    }
  }
}

// Row and column of accumulator `r` of a thread.
struct Place {
  Place(unsigned thread, unsigned r)
      : row(thread / 32 * 16 + thread % 32 / 4 + r / 2 % 2 * 8), column(r / 4 * 8 + thread % 4 * 2 + r % 2) {
  }
  unsigned row;
  unsigned column;
};

void multiply(const PendingWgmma& product, const Operands& operands) {
  static thread_local float d[ROWS][MOST_COLUMNS];
  const unsigned n = product.operation.n;
  for (unsigned thread = 0; thread < WARPGROUP; thread++) {
    for (unsigned r = 0; r < n / 2; r++) {
      const Place place(thread, r);
      d[place.row][place.column] = product.operation.accumulate ? product.d[thread][r] : 0.0f;
    }
  }
  for (unsigned row = 0; row < ROWS; row++) {
    for (unsigned k = 0; k < DEPTH; k++) {
      for (unsigned column = 0; column < n; column++) {
        d[row][column] += operands.a[row][k] * operands.b[k][column];
      }
    }
  }
  for (unsigned thread = 0; thread < WARPGROUP; thread++) {
    for (unsigned r = 0; r < n / 2; r++) {
      const Place place(thread, r);
      product.d[thread][r] = d[place.row][place.column];
    }
  }
}

Operands& operand_space() {
  static thread_local Operands operands;
  return operands;
}

// For ThreadSanitizer: reads the operands as the thread that issues, where a race is a barrier that is
// missing; and as the tensor core, which sees what TMA has loaded, and of plain stores those before a proxy
// fence.
void look_at_operands(const PendingWgmma& product, Warpgroup& group) {
  load(operand_space(), product);
  // Whoever has waited for the product comes after this reading, too.
  sanitizer::release(group.issued_tokens[product.number]);
  Block& block = *me().block;
  const sanitizer::ActAs unit(block.units.products);
  const sanitizer::Quiet quiet;
  sanitizer::acquire(&block.proxy_token);
  sanitizer::acquire(&block.loaded_token);
  load(operand_space(), product);
}

void finish(const PendingWgmma& product, Warpgroup& group) {
  const sanitizer::ActAs unit(me().block->units.products);
  const sanitizer::Quiet quiet;
  load(operand_space(), product);
  multiply(product, operand_space());
  sanitizer::release(&group.product_token);
}

}  // namespace

void wgmma(const Wgmma& operation) {
  const sanitizer::Quiet quiet;
  Wgmma mine = operation;
  warpgroup_collective(GroupCollective::Wgmma, &mine, [](Warpgroup& group) {
    PendingWgmma product{*static_cast<const Wgmma*>(group.threads[0]), {}, {}, false, group.issued++};
    for (unsigned thread = 0; thread < WARPGROUP; thread++) {
      const Wgmma& one = *static_cast<const Wgmma*>(group.threads[thread]);
      const Wgmma& first = product.operation;
      if (one.a != first.a || one.b != first.b || one.n != first.n || one.accumulate != first.accumulate) {
        fail("wgmma: the operands of thread %u differ from those of thread 0", thread);
      }
      product.d[thread] = one.d;
      product.a[thread] = one.a_registers;
    }
    if constexpr (sanitizer::THREAD) {
      look_at_operands(product, group);
    }
    group.products.issue(product);
    if (me().block->cluster.early()) {
      // The tensor core takes products in their order: those before are done, too.
      group.products.for_each([&group](PendingWgmma& issued) {
        if (!issued.done) {
          finish(issued, group);
          issued.done = true;
        }
      });
    }
  });
}

void wgmma_commit() {
  const sanitizer::Quiet quiet;
  warpgroup_collective(GroupCollective::Commit, nullptr, [](Warpgroup& group) { group.products.commit(); });
}

void wgmma_wait(unsigned pending) {
  const sanitizer::Quiet quiet;
  Warpgroup& group = me().block->warpgroups[me().number / WARPGROUP];
  warpgroup_collective(GroupCollective::Wait, nullptr, [pending](Warpgroup& group) {
    group.products.wait(pending, [&group](const PendingWgmma& product) {
      if (!product.done) {
        finish(product, group);
      }
      sanitizer::acquire(group.issued_tokens[product.number]);
    });
    sanitizer::acquire(&group.product_token);
    sanitizer::release(&group.wait_token);
  });
  sanitizer::acquire(&group.wait_token);
}

}  // namespace emu
