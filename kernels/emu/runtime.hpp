// The emulator's own data: fibers, blocks, and what they wait for. Kernels do not see this file.
#pragma once

#include <string>
#include <vector>

#include "ptx_emu.hpp"
#include "sanitizers.hpp"

namespace emu {

constexpr unsigned LANES = 32;
constexpr unsigned WARPGROUP = 128;
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned MAX_WARPS = MAX_THREADS / LANES;
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

  // Finishes the oldest groups until `pending` are left.
  template <class Finish>
  void wait(unsigned pending, Finish finish) {
    if (group_ends_.size() <= pending) {
      return;
    }
    const size_t groups = group_ends_.size() - pending;
    const size_t end = group_ends_[groups - 1];
    for (size_t i = 0; i < end; i++) {
      finish(operations_[i]);
    }
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

struct Fiber : Thread {
  unsigned number;  // in its block
  unsigned lane;
  unsigned warp;
  Block* block;
  Context context;
  Wait wait;
  bool finished;
  InFlight<Copy> copies;
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
  static constexpr unsigned MOST_ISSUED = 256;
  char issued_tokens[MOST_ISSUED];
  unsigned issued = 0;
  char wait_token;
};

struct Barrier {
  unsigned arrived = 0;
  unsigned expected = 0;
  uint32_t waiting[MAX_WARPS] = {};
  PhaseToken token;
};

struct MbarrierWait {
  Fiber* fiber;
  const uint64_t* barrier;
  uint32_t parity;
};

struct TmaLoad {
  TensorMap map;  // a copy: the thread may end before the load does, and its parameters with it
  unsigned char* to;
  int at[3];
  uint64_t* barrier;

  size_t bytes() const {
    return static_cast<size_t>(map.box[0]) * map.box[1] * map.box[2] * map.element_bytes;
  }
};

// One block while it runs. The tokens stand for orderings that ThreadSanitizer is told of.
struct Block {
  Block(const Launch& launch, uint64_t number);
  ~Block();

  const Launch& launch;
  Random random;
  Ready ready;
  unsigned live;  // threads that have not finished
  Fiber* fibers = nullptr;
  std::string error;

  // The operating-system thread, which runs fibers; and whoever ran before the one that runs.
  Context host;
  Context* previous = nullptr;

  unsigned char* shared;
  Warp warps[MAX_WARPS];
  Warpgroup warpgroups[MAX_THREADS / WARPGROUP];
  Barrier barriers[MAX_BARRIERS];

  std::vector<TmaLoad> loads;
  std::vector<MbarrierWait> mbarrier_waits;
  sanitizer::Actor copy_unit = nullptr;
  sanitizer::Actor tensor_core = nullptr;
  char issued_token;
  char loaded_token;
  char proxy_token;

  // Whether what is issued now takes effect now.
  bool early();

  // The thread that runs next; null if none can, now or later.
  Fiber* next();
};

inline Fiber& me() {
  return *static_cast<Fiber*>(current);
}

inline uint32_t without(uint32_t lanes, unsigned lane) {
  return lanes & ~(1u << lane);
}

// Lets others run until someone adds this thread to those that are ready.
void pause(Wait wait);

// What lies at a shared address.
unsigned char* shared_pointer(uint32_t address, size_t bytes);

// Lets one of the block's TMA loads arrive.
void finish_a_load(Block& block);

}  // namespace emu
