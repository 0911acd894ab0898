// What AddressSanitizer and ThreadSanitizer must be told about fibers, and about copies that the emulator
// makes for a kernel. In a plain build nothing of it remains.
//
// Kernels are compiled with the sanitizer, the emulator itself is not: -DEMU_ASAN or -DEMU_TSAN says which
// one the program is linked with. To ThreadSanitizer each CUDA thread is a thread of its own, ordered with
// others only where CUDA orders it: switching fibers orders nothing, acquire and release do.
#pragma once

#include <cstddef>

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef EMU_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* token);
void __tsan_release(void* token);
void __tsan_read_range(void* from, unsigned long bytes);
void __tsan_write_range(void* to, unsigned long bytes);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace emu::sanitizer {

#ifdef EMU_TSAN
constexpr bool THREAD = true;
#else
constexpr bool THREAD = false;
#endif

inline void begin_quiet() {
#ifdef EMU_TSAN
  AnnotateIgnoreReadsBegin("", 0);
  AnnotateIgnoreWritesBegin("", 0);
#endif
}

inline void end_quiet() {
#ifdef EMU_TSAN
  AnnotateIgnoreWritesEnd("", 0);
  AnnotateIgnoreReadsEnd("", 0);
#endif
}

// While one lives, accesses of this CUDA thread do not count: the emulator's own data is shared by all
// fibers, and the memcpy in it is seen by ThreadSanitizer though the emulator is not instrumented. Every
// entry into the emulator has one.
class Quiet {
 public:
  Quiet() {
    begin_quiet();
  }
  ~Quiet() {
    end_quiet();
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

// What was done before release(token) happened before what is done after a later acquire(token).
inline void release([[maybe_unused]] const void* token) {
#ifdef EMU_TSAN
  __tsan_release(const_cast<void*>(token));
#endif
}

inline void acquire([[maybe_unused]] const void* token) {
#ifdef EMU_TSAN
  __tsan_acquire(const_cast<void*>(token));
#endif
}

// An access that counts, made by an emulator that is quiet once. Reads and writes are quiet together.
inline void read([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#ifdef EMU_TSAN
  end_quiet();
  __tsan_read_range(const_cast<void*>(from), bytes);
  begin_quiet();
#endif
}

inline void write([[maybe_unused]] void* to, [[maybe_unused]] size_t bytes) {
#ifdef EMU_TSAN
  end_quiet();
  __tsan_write_range(to, bytes);
  begin_quiet();
#endif
}

// True where AddressSanitizer knows that a kernel may not read all of it.
inline bool forbidden([[maybe_unused]] const void* from, [[maybe_unused]] size_t bytes) {
#ifdef EMU_ASAN
  return bytes > 0 && __asan_region_is_poisoned(const_cast<void*>(from), bytes) != nullptr;
#else
  return false;
#endif
}

inline void forbid([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef EMU_ASAN
  __asan_poison_memory_region(memory, bytes);
#endif
}

inline void allow([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(memory, bytes);
#endif
}

// A logical thread of ThreadSanitizer.
using Actor = void*;

inline Actor new_actor() {
#ifdef EMU_TSAN
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}

inline Actor current_actor() {
#ifdef EMU_TSAN
  return __tsan_get_current_fiber();
#else
  return nullptr;
#endif
}

inline void become([[maybe_unused]] Actor actor) {
#ifdef EMU_TSAN
  constexpr unsigned NO_ORDER = 1;
  __tsan_switch_to_fiber(actor, NO_ORDER);
#endif
}

// While one lives, accesses are those of a unit of the processor beside its threads: of the one that copies,
// or of the tensor cores.
class ActAs {
 public:
  explicit ActAs(Actor unit) : back_(current_actor()) {
    become(unit);
  }
  ~ActAs() {
    become(back_);
  }
  ActAs(const ActAs&) = delete;
  ActAs& operator=(const ActAs&) = delete;

 private:
  Actor back_;
};

// A stack, and where AddressSanitizer keeps what it moved off it.
struct Stack {
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake = nullptr;
};

// Round a switch of stacks: `begin` before it on the old one, `end` after it on the new one, which learns the
// bounds of the stack that it came from.
inline void begin_switch([[maybe_unused]] Stack& from, [[maybe_unused]] const Stack& to,
                         [[maybe_unused]] bool last) {
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.bottom, to.bytes);
#endif
}

inline void end_switch([[maybe_unused]] const Stack& to, [[maybe_unused]] Stack& from) {
#ifdef EMU_ASAN
  __sanitizer_finish_switch_fiber(to.fake, &from.bottom, &from.bytes);
#endif
}

}  // namespace emu::sanitizer
