// TMA: boxes of tensors, to shared memory and back.
#include <algorithm>
#include <utility>

#include "runtime.hpp"

namespace emu {

namespace {

constexpr unsigned CHUNK_BYTES = 16;

// 128-byte swizzle: in each 1024 bytes, the 16-byte chunks of row r of 8 are exchanged by r.
size_t swizzle_128b(size_t offset) {
  return offset ^ (offset >> 7 & 7) << 4;
}

size_t box_bytes(const TensorMap& map) {
  return static_cast<size_t>(map.box[0]) * map.box[1] * map.box[2] * map.element_bytes;
}

// 16 bytes of a box: where they lie in shared memory, and which of them, from `begin` to `end`, in the tensor.
struct Chunk {
  size_t offset;
  unsigned begin = 0;
  unsigned end = 0;
  unsigned char* tensor = nullptr;  // where that of `begin` is
};

// That of element (x, y, z).
Chunk chunk_at(const TensorMap& map, size_t offset, int64_t x, int64_t y, int64_t z) {
  Chunk chunk{map.swizzle_128b ? swizzle_128b(offset) : offset};
  const int64_t extent = map.extent[0];
  const int64_t first = std::max<int64_t>(x, 0);
  const int64_t last = std::min<int64_t>(x + CHUNK_BYTES / map.element_bytes, extent);
  const auto inside = [](int64_t i, uint64_t extent) {
    return i >= 0 && static_cast<uint64_t>(i) < extent;
  };
  if (first < last && inside(y, map.extent[1]) && inside(z, map.extent[2])) {
    chunk.begin = (first - x) * map.element_bytes;
    chunk.end = (last - x) * map.element_bytes;
    unsigned char* tensor = static_cast<unsigned char*>(const_cast<void*>(map.tensor));
    chunk.tensor = tensor + first * map.element_bytes + y * map.stride[0] + z * map.stride[1];
    if (sanitizer::forbidden(chunk.tensor, chunk.end - chunk.begin)) {
      fail("TMA: not all of the tensor is there at its element (%ld, %ld, %ld)", first, y, z);
    }
  }
  return chunk;
}

template <class Visit>
void for_each_chunk(const TensorMap& map, const int (&at)[3], Visit visit) {
  size_t offset = 0;
  for (unsigned z = 0; z < map.box[2]; z++) {
    for (unsigned y = 0; y < map.box[1]; y++) {
      for (unsigned x = 0; x < map.box[0]; x += CHUNK_BYTES / map.element_bytes) {
        visit(chunk_at(map, offset, int64_t{at[0]} + x, int64_t{at[1]} + y, int64_t{at[2]} + z));
        offset += CHUNK_BYTES;
      }
    }
  }
}

// The box of a map in shared memory.
unsigned char* box_at(const TensorMap& map, const Block& block, uint32_t address) {
  if (map.magic != TensorMap::MAGIC) {
    fail("TMA: this is not a tensor map");
  }
  const unsigned alignment = map.swizzle_128b ? 1024 : 128;
  if (address % alignment != 0) {
    fail("TMA: shared address 0x%x is not aligned to %u bytes", address, alignment);
  }
  return shared_pointer(block, address, box_bytes(map));
}

void load_box(const TmaLoad& load) {
  for_each_chunk(load.map, load.at, [&](const Chunk& chunk) {
    unsigned char* to = load.to + chunk.offset;
    std::memset(to, 0, CHUNK_BYTES);
    if (chunk.begin < chunk.end) {
      sanitizer::read(chunk.tensor, chunk.end - chunk.begin);
      std::memcpy(to + chunk.begin, chunk.tensor, chunk.end - chunk.begin);
    }
  });
}

void finish(const TmaLoad& load) {
  const size_t bytes = box_bytes(load.map);
  {
    const sanitizer::ActAs unit(load.issuer->units.loads);
    const sanitizer::Quiet quiet;
    sanitizer::acquire(&load.issuer->issued_token);
    sanitizer::write(load.to, bytes);
    load_box(load);
    sanitizer::release(mbarrier_token(load.barrier));
    sanitizer::release(&load.to_block->loaded_token);
  }
  update_mbarrier(*load.to_block, load.barrier, 0, -static_cast<int>(bytes));
}

// Not inline: this is where reports of ThreadSanitizer say that a load has written.
__attribute__((noinline)) void issue_load(const TmaLoad& load) {
  Block& issuer = *load.issuer;
  mbarrier_token(load.barrier);  // fails if there is no barrier yet
  sanitizer::release(&issuer.issued_token);
  if (issuer.cluster.early()) {
    finish(load);
    return;
  }
  issuer.cluster.loads.push_back(load);
  // The destination is taken from here on.
  const sanitizer::ActAs unit(issuer.units.loads);
  const sanitizer::Quiet quiet;
  sanitizer::acquire(&issuer.issued_token);
  sanitizer::write(load.to, box_bytes(load.map));
}

}  // namespace

void tma_load(uint32_t to, const TensorMap* map, int x, int y, int z, uint32_t barrier) {
  const sanitizer::Quiet quiet;
  Block& block = *me().block;
  issue_load({*map, &block, &block, box_at(*map, block, to), {x, y, z}, mbarrier_at(block, barrier)});
}

void tma_load_multicast(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier, uint16_t mask) {
  const sanitizer::Quiet quiet;
  for (unsigned rank = 0; rank < 16; rank++) {
    if ((mask >> rank & 1) != 0) {
      Block& block = block_of_cluster(rank);
      issue_load({*map, me().block, &block, box_at(*map, block, to), {x, y, 0}, mbarrier_at(block, barrier)});
    }
  }
}

void finish_a_load(Cluster& cluster) {
  std::vector<TmaLoad>& loads = cluster.loads;
  const unsigned number = cluster.launch.settings.seed == 0 ? 0 : cluster.random.below(loads.size());
  const TmaLoad load = loads[number];
  loads.erase(loads.begin() + number);
  finish(load);
}

void expect_no_loads(const Block& block) {
  for (const TmaLoad& load : block.cluster.loads) {
    if (load.to_block == &block) {
      fail("the block ended with TMA loads into its shared memory under way");
    }
  }
}

namespace {

// For ThreadSanitizer, all of a store as soon as it is issued. The box is read by the thread, where a race is a
// barrier that is missing, and by a unit that sees what TMA has loaded and of plain stores those before a proxy fence.
// The unit that writes comes after what the thread has done.
void look_at_store(Block& block, const TmaStore& store) {
  const size_t bytes = box_bytes(store.map);
  sanitizer::read(store.from, bytes);
  sanitizer::release(&block.store_token);
  {
    const sanitizer::ActAs unit(block.units.store_reads);
    const sanitizer::Quiet quiet;
    sanitizer::acquire(&block.proxy_token);
    sanitizer::acquire(&block.loaded_token);
    sanitizer::read(store.from, bytes);
    sanitizer::release(block.read_tokens[store.number]);
  }
  const sanitizer::ActAs unit(block.units.store_writes);
  const sanitizer::Quiet quiet;
  sanitizer::acquire(&block.store_token);
  for_each_chunk(store.map, store.at, [](const Chunk& chunk) {
    if (chunk.begin < chunk.end) {
      sanitizer::write(chunk.tensor, chunk.end - chunk.begin);
    }
  });
  sanitizer::release(block.written_tokens[store.number]);
  sanitizer::release(&block.launch);
}

void read_box(TmaStore& store) {
  if (store.box.empty()) {
    store.box.assign(store.from, store.from + box_bytes(store.map));
  }
}

void write_box(TmaStore& store) {
  if (std::exchange(store.written, true)) {
    return;
  }
  for_each_chunk(store.map, store.at, [&](const Chunk& chunk) {
    if (chunk.begin < chunk.end) {
      std::memcpy(chunk.tensor, store.box.data() + chunk.offset + chunk.begin, chunk.end - chunk.begin);
    }
  });
}

void wait_read(const Block& block, TmaStore& store) {
  read_box(store);
  sanitizer::acquire(block.read_tokens[store.number]);
  store.waited = true;
}

}  // namespace

void tma_store(const TensorMap* map, int x, int y, int z, uint32_t from) {
  const sanitizer::Quiet quiet;
  Fiber& fiber = me();
  Block& block = *fiber.block;
  TmaStore store{*map, box_at(*map, block, from), {x, y, z}, block.stores++};
  if constexpr (sanitizer::THREAD) {
    look_at_store(block, store);
  }
  if (block.cluster.early()) {
    read_box(store);
    write_box(store);
  }
  fiber.stores.issue(store);
}

void tma_store_commit() {
  const sanitizer::Quiet quiet;
  me().stores.commit();
}

void tma_store_wait_read(unsigned pending) {
  const sanitizer::Quiet quiet;
  Fiber& fiber = me();
  fiber.stores.for_each_before(pending, [&](TmaStore& store) {
    wait_read(*fiber.block, store);
    if (fiber.block->cluster.early()) {
      write_box(store);
    }
  });
}

void tma_store_wait(unsigned pending) {
  const sanitizer::Quiet quiet;
  Fiber& fiber = me();
  fiber.stores.wait(pending, [&](TmaStore& store) {
    wait_read(*fiber.block, store);
    write_box(store);
    sanitizer::acquire(fiber.block->written_tokens[store.number]);
  });
}

void leave_stores(Fiber& fiber) {
  fiber.stores.for_each([&](TmaStore& store) {
    if (!store.waited) {
      fail("the thread ended with TMA stores under way that may still read shared memory");
    }
    if (!store.written) {
      fiber.block->cluster.last_stores.push_back(store);
    }
  });
}

void finish_stores(Cluster& cluster) {
  for (TmaStore& store : cluster.last_stores) {
    write_box(store);
  }
}

void fence_proxy_async() {
  sanitizer::release(&me().block->proxy_token);
}

}  // namespace emu
