// The emulator's own data: fibers, clusters of blocks, and what they wait for. Kernels do not see this file.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ptx_emu.hpp"
#include "sanitizers.hpp"

namespace emu {

constexpr unsigned LANES = 32;
constexpr unsigned WARPGROUP = 128;
constexpr unsigned MAX_THREADS = 1024;  // of a cluster, so of a block
constexpr unsigned MAX_WARPS = MAX_THREADS / LANES;
constexpr unsigned MAX_CLUSTER = 8;  // blocks: what all devices with clusters can do
constexpr unsigned MAX_BARRIERS = 16;
constexpr size_t MAX_SHARED_BYTES = 227 * 1024;
constexpr size_t SHARED_ALIGNMENT = 1024;

// The address of dynamic shared memory; on sm_90 a kernel sees its first kilobyte taken, too.
constexpr uint32_t SHARED_WINDOW = 1024;

// When copies and products that run beside the threads take effect.
enum class AsyncMode : uint32_t {
  Early,   // as soon as they are issued
  Late,    // when they are waited for
  Random,  // some now, some later
};

struct Settings {
  unsigned workers = 1;
  // 0: threads run in the order of their numbers. Odd: each turn goes to a random thread. Even: to the warp
  // with the highest priority, of random priorities that change now and then (the PCT algorithm, which finds
  // races that need one thread far ahead of another).
  uint64_t seed = 0;
  AsyncMode async = AsyncMode::Late;
};

struct Launch {
  Call call;
  void* const* arguments;
  dim3 grid;
  unsigned cluster;  // blocks that run together, along x
  unsigned threads;  // in a block
  size_t shared_bytes;
  Settings settings;
};

// Runs all blocks; a message if that failed. One launch at a time.
std::string run(const Launch& launch);

// xorshift64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed ? seed : 1) {
  }
  uint64_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  unsigned below(unsigned end) {
    return next() % end;
  }

 private:
  uint64_t state_;
};

// Operations that were issued and not yet waited for, in groups.
template <class Operation>
class InFlight {
 public:
  void issue(const Operation& operation) {
    operations_.push_back(operation);
  }

  void commit() {
    group_ends_.push_back(operations_.size());
  }

  // In the order in which they were issued.
  template <class Look>
  void for_each(Look look) {
    for (Operation& operation : operations_) {
      look(operation);
    }
  }

  // Of all groups but the newest `pending`.
  template <class Look>
  void for_each_before(unsigned pending, Look look) {
    const size_t end = end_of(groups_before(pending));
    for (size_t i = 0; i < end; i++) {
      look(operations_[i]);
    }
  }

  // Finishes the oldest groups until `pending` are left.
  template <class Finish>
  void wait(unsigned pending, Finish finish) {
    for_each_before(pending, finish);
    const size_t groups = groups_before(pending);
    const size_t end = end_of(groups);
    operations_.erase(operations_.begin(), operations_.begin() + end);
    group_ends_.erase(group_ends_.begin(), group_ends_.begin() + groups);
    for (size_t& group_end : group_ends_) {
      group_end -= end;
    }
  }

  void clear() {
    operations_.clear();
    group_ends_.clear();
  }

 private:
  size_t groups_before(unsigned pending) const {
    return group_ends_.size() > pending ? group_ends_.size() - pending : 0;
  }
  size_t end_of(size_t groups) const {
    return groups > 0 ? group_ends_[groups - 1] : 0;
  }

  std::vector<Operation> operations_;
  std::vector<size_t> group_ends_;
};

// cp.async
struct Copy {
  void* to;
  const void* from;
  unsigned bytes;
  unsigned read;
};

// cp.async.bulk.tensor from shared to global memory.
struct TmaStore {
  TensorMap map;  // a copy: the thread may end before the store does, and its parameters with it
  const unsigned char* from;
  int at[3];
  unsigned number;                 // counted by block
  bool waited = false;             // the thread has waited until shared memory was read
  std::vector<unsigned char> box;  // what was there, once it is read
  bool written = false;
};

// What a thread waits for, as words: `format` takes `number`.
struct Wait {
  const char* format = nullptr;
  unsigned number = 0;
};

// A place in a program: what is needed to go on there.
struct Context {
  void* stack_pointer = nullptr;
  sanitizer::Stack stack;
  sanitizer::Actor actor = nullptr;
};

struct Block;
struct Cluster;

struct Fiber : Thread {
  unsigned number;  // in its block, as that of its warp
  unsigned lane;
  unsigned warp;
  Block* block;
  Context context;
  Wait wait;
  bool finished;
  InFlight<Copy> copies;
  InFlight<TmaStore> stores;
};

// The threads that can run.
class Ready {
 public:
  Ready(const Settings& settings, Random& random);

  bool empty() const {
    return warps_ == 0;
  }
  void add(unsigned warp, uint32_t lanes) {
    if (lanes != 0) {
      lanes_[warp] |= lanes;
      warps_ |= 1u << warp;
    }
  }
  // Takes out the number of the thread whose turn it is.
  unsigned take();

 private:
  unsigned choose();
  unsigned choose_in_order() const;
  unsigned choose_by_priority();

  const uint64_t seed_;
  Random& random_;
  uint32_t warps_ = 0;  // that have such threads
  uint32_t lanes_[MAX_WARPS] = {};
  uint32_t priority_[MAX_WARPS];
  unsigned last_ = MAX_THREADS - 1;
};

// A token for each of two phases that follow each other: whoever still leaves a phase must not be ordered
// after those who have entered the next.
class PhaseToken {
 public:
  const char* get() const {
    return &tokens_[phase_];
  }
  void next() {
    phase_ ^= 1;
  }

 private:
  unsigned phase_ = 0;
  char tokens_[2];
};

// A token for each of several operations, which are numbered as they are issued: for those that are under way
// together.
class NumberedTokens {
 public:
  const char* operator[](unsigned number) const {
    return &tokens_[number % MOST];
  }

 private:
  static constexpr unsigned MOST = 256;
  char tokens_[MOST];
};

// Lanes of a warp on their way to one warp operation.
struct Meeting {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  Collective kind;
  void* lanes[LANES];
  PhaseToken token;
};

struct Warp {
  Meeting meetings[4];  // of disjoint masks
};

enum class GroupCollective { Wgmma, Commit, Wait };

struct PendingWgmma {
  Wgmma operation;
  float* d[WARPGROUP];
  const uint32_t* a[WARPGROUP];
  bool done;
  unsigned number;  // counted by warpgroup
};

struct Warpgroup {
  unsigned arrived = 0;
  GroupCollective kind;
  void* threads[WARPGROUP];
  InFlight<PendingWgmma> products;
  char product_token;
  // Stands for the reading of a product's operands by the thread that issued it.
  NumberedTokens issued_tokens;
  unsigned issued = 0;
  char wait_token;
};

struct Barrier {
  unsigned arrived = 0;
  unsigned expected = 0;
  uint32_t waiting[MAX_WARPS] = {};  // by warp of the cluster
  PhaseToken token;
};

struct MbarrierWait {
  Fiber* fiber;
  const uint64_t* barrier;
  uint32_t parity;
};

struct TmaLoad {
  TensorMap map;  // a copy, as that of a store
  Block* issuer;
  Block* to_block;
  unsigned char* to;
  int at[3];
  uint64_t* barrier;
};

// Units of a processor beside its threads, to ThreadSanitizer. A TMA store is two: what reads shared memory does not
// know all that the thread does that has issued it, what writes global memory does.
struct Units {
  sanitizer::Actor loads;
  sanitizer::Actor store_reads;
  sanitizer::Actor store_writes;
  sanitizer::Actor products;
};

// One block while it runs. The tokens stand for orderings that ThreadSanitizer is told of.
struct Block {
  Block(Cluster& cluster, unsigned rank, const Units& units);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  Cluster& cluster;
  const Launch& launch;
  const unsigned rank;
  const unsigned first_warp;  // the number of its first warp in the cluster
  unsigned live;              // threads that have not finished

  unsigned char* shared;
  Warp warps[MAX_WARPS];
  Warpgroup warpgroups[MAX_THREADS / WARPGROUP];
  Barrier barriers[MAX_BARRIERS];

  std::vector<MbarrierWait> mbarrier_waits;
  const Units units;
  char issued_token;
  char loaded_token;
  char proxy_token;
  unsigned stores = 0;
  char store_token;
  NumberedTokens read_tokens;
  NumberedTokens written_tokens;

  // Lets threads that wait go on.
  void wake(unsigned warp, uint32_t lanes);
};

// The blocks that run together, often a single one: their threads take turns. A thread counts on from block to block.
struct Cluster {
  Cluster(const Launch& launch, uint64_t number);

  const Launch& launch;
  Random random;
  Ready ready;
  unsigned live;  // threads that have not finished
  Fiber* fibers = nullptr;
  std::string error;

  // The operating-system thread, which runs fibers; and whoever ran before the one that runs.
  Context host;
  Context* previous = nullptr;

  std::vector<std::unique_ptr<Block>> blocks;
  Barrier barrier;
  std::vector<TmaLoad> loads;
  std::vector<TmaStore> last_stores;  // of threads that have ended, to be written at the end

  // Whether what is issued now takes effect now.
  bool early();

  // The thread that runs next; null if none can, now or later.
  Fiber* next();
};

inline void Block::wake(unsigned warp, uint32_t lanes) {
  cluster.ready.add(first_warp + warp, lanes);
}

inline Fiber& me() {
  return *static_cast<Fiber*>(current);
}

inline uint32_t without(uint32_t lanes, unsigned lane) {
  return lanes & ~(1u << lane);
}

// Lets others run until someone adds this thread to those that are ready.
void pause(Wait wait);

// Begins a fiber's stack: the stack pointer with which to switch to it.
void* begin_stack(unsigned char* end);

// Runs the cluster's fibers until none can go on.
void run_fibers(Cluster& cluster);

// What lies at a shared address, of this thread's block or another.
unsigned char* shared_pointer(uint32_t address, size_t bytes);
unsigned char* shared_pointer(const Block& block, uint32_t address, size_t bytes);

// A block of this thread's cluster that has not ended.
Block& block_of_cluster(unsigned rank);

// Opens the cluster's barrier if all threads that have not ended are there.
bool open_if_complete(Cluster& cluster);

// The mbarrier at a shared address; what stands for the end of its phase; and what arrives at it.
uint64_t* mbarrier_at(const Block& block, uint32_t address);
const void* mbarrier_token(const uint64_t* barrier);
void update_mbarrier(Block& block, uint64_t* barrier, unsigned arrivals, int bytes);

// Lets one of the cluster's TMA loads arrive.
void finish_a_load(Cluster& cluster);

// For a block that ends.
void expect_no_loads(const Block& block);

// Takes over what a thread that ends has not waited for.
void leave_stores(Fiber& fiber);

// Writes what the threads of the cluster have left.
void finish_stores(Cluster& cluster);

}  // namespace emu
