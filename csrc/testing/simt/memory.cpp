// Device memory, and the check of every access to it.
//
// In the address build (AddressSanitizer) a buffer is a heap block of exactly its size. In the race build kernels are
// compiled with GCC's -fsanitize=thread instrumentation but linked against the __tsan_* functions below instead of its
// run-time library: each access is looked up, checked for bounds, and compared with the last accesses to the same
// 4-byte word. Two accesses by different threads, one of them a write and not both atomic, are a race unless a barrier
// lies between them: a block barrier, or a warp barrier for two lanes of a warp; nothing orders two blocks.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "runtime.h"
#include "simt.h"

extern "C" char __data_start;  // the program's own variables, among them all static __shared__ ones
extern "C" char _end;

namespace simt {
namespace {

constexpr size_t kWord = 4;
constexpr size_t kGuard = 4096;
constexpr unsigned char kGarbage = 0xA5;
constexpr size_t kSharedLimit = 64 * 1024;

void* map_zeros(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

std::vector<void*> heap_blocks;
std::vector<std::pair<void*, size_t>> mapped;

#if !defined(SIMT_RACE)

unsigned char* shared_block = nullptr;

#else

Epochs epochs{1, 1, 1};

// The last accesses to one word.
struct Word {
  uint64_t write_epoch, read_epoch;
  uint64_t older_read_launch;  // launch epoch in which an earlier block read it
  uint32_t write_thread, write_warp_epoch;
  uint32_t read_thread, read_warp_epoch;
  enum : uint8_t { kOne, kOneWarp, kMany } readers;
  bool write_atomic;
};

// A range of addresses with a Word for each of its words.
struct Region {
  uintptr_t begin = 0;
  size_t bytes = 0;
  Word* words = nullptr;

  void cover(void* memory, size_t size) {
    begin = reinterpret_cast<uintptr_t>(memory);
    bytes = size;
    words = static_cast<Word*>(map_zeros((size / kWord + 1) * sizeof(Word)));
  }
  bool holds(uintptr_t address) const { return address - begin < bytes; }
};

constexpr size_t kArenaBytes = size_t{512} << 20;

struct Buffer {
  size_t bytes;
  bool sparse;
};

Region arena, statics, dynamic;
size_t arena_used = 0;
size_t dynamic_used = 0;
std::map<uintptr_t, Buffer> buffers;

// One range of addresses for the whole program; everything else in it is out of bounds.
uintptr_t sparse_begin = 0;
constexpr size_t kSparseBytes = size_t{1} << 40;
size_t sparse_used = 0;

std::string describe(const char* kind, uintptr_t address, size_t bytes) {
  return std::string(kind) + " of " + std::to_string(bytes) + " bytes at " + std::to_string(address);
}

// False where the access leaves its buffer.
bool inside_buffer(uintptr_t address, size_t bytes, bool& sparse) {
  auto next = buffers.upper_bound(address);
  if (next == buffers.begin()) return false;
  --next;
  sparse = next->second.sparse;
  return address + bytes <= next->first + next->second.bytes;
}

bool ordered(const Actor& me, uint32_t thread, uint32_t warp_epoch) {
  return thread == me.thread || (thread / kWarp == me.thread / kWarp && warp_epoch < me.warp_epoch);
}

bool in_earlier_block(uint64_t epoch) { return epoch >= epochs.launch && epoch < epochs.block; }

const char* conflict(const Word& word, const Actor& me, bool write, bool atomic, bool global) {
  if (!(atomic && word.write_atomic)) {
    if (word.write_epoch == epochs.now && !ordered(me, word.write_thread, word.write_warp_epoch)) {
      return write ? "two threads write" : "one thread writes and another reads";
    }
    if (global && in_earlier_block(word.write_epoch)) {
      return write ? "two blocks write" : "one block writes and another reads";
    }
  }
  if (!write) return nullptr;
  if (word.read_epoch == epochs.now) {
    const bool alone = word.readers == Word::kOne && ordered(me, word.read_thread, word.read_warp_epoch);
    const bool own_warp = word.readers == Word::kOneWarp && word.read_thread / kWarp == me.thread / kWarp &&
                          word.read_warp_epoch < me.warp_epoch;
    if (!alone && !own_warp) return "one thread reads and another writes";
  }
  if (global && (in_earlier_block(word.read_epoch) || word.older_read_launch == epochs.launch)) {
    return "one block reads and another writes";
  }
  return nullptr;
}

void note(Word& word, const Actor& me, bool write, bool atomic) {
  if (write) {
    word.write_epoch = epochs.now;
    word.write_thread = me.thread;
    word.write_warp_epoch = me.warp_epoch;
    word.write_atomic = atomic;
    return;
  }
  if (in_earlier_block(word.read_epoch)) word.older_read_launch = epochs.launch;
  if (word.read_epoch != epochs.now) {
    word.readers = Word::kOne;
  } else if (word.read_thread / kWarp != me.thread / kWarp) {
    word.readers = Word::kMany;
  } else if (word.readers != Word::kMany && word.read_warp_epoch < me.warp_epoch) {
    word.readers = Word::kOne;  // all lanes have passed a warp barrier since the others read
  } else if (word.read_thread != me.thread && word.readers == Word::kOne) {
    word.readers = Word::kOneWarp;
  }
  word.read_epoch = epochs.now;
  word.read_thread = me.thread;
  word.read_warp_epoch = me.warp_epoch;
}

void check_words(Region& region, uintptr_t address, size_t bytes, const Actor& me, bool write, bool atomic,
                 bool global) {
  const size_t first = (address - region.begin) / kWord;
  const size_t last = (address + bytes - 1 - region.begin) / kWord;
  for (size_t i = first; i <= last; ++i) {
    Word& word = region.words[i];
    if (!global && !write && word.write_epoch < epochs.block) {
      fail(describe("uninitialised read", address, bytes) + " of shared memory that this block has not written");
    }
    if (const char* how = conflict(word, me, write, atomic, global)) {
      fail(std::string("race: ") + how + " the same " + (global ? "global" : "shared") + " memory without a barrier, " +
           describe("access", address, bytes));
    }
    note(word, me, write, atomic);
  }
}

void on_access(const void* pointer, size_t bytes, bool write, bool atomic = false) {
  const Actor* const me = current_actor();
  if (me == nullptr) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  if (dynamic.holds(address)) {
    if (address + bytes > dynamic.begin + dynamic_used) {
      fail(
          describe(write ? "out-of-bounds shared write" : "out-of-bounds shared read", address - dynamic.begin, bytes) +
          ", dynamic shared memory has " + std::to_string(dynamic_used));
    }
    check_words(dynamic, address, bytes, *me, write, atomic, false);
  } else if (statics.holds(address)) {
    check_words(statics, address, bytes, *me, write, atomic, false);
  } else if (arena.holds(address) || address - sparse_begin < kSparseBytes) {
    bool sparse = false;
    if (!inside_buffer(address, bytes, sparse)) {
      fail(describe(write ? "out-of-bounds global write" : "out-of-bounds global read", address, bytes));
    }
    if (address % (bytes > 16 ? 16 : bytes) != 0) fail(describe("misaligned access", address, bytes));
    if (!sparse) check_words(arena, address, bytes, *me, write, atomic, true);
  }
}

bool set_up() {
  arena.cover(map_zeros(kArenaBytes), kArenaBytes);
  dynamic.cover(map_zeros(kSharedLimit), kSharedLimit);
  statics.cover(&__data_start, static_cast<size_t>(&_end - &__data_start));
  void* const memory =
      mmap(nullptr, kSparseBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  sparse_begin = memory == MAP_FAILED ? 0 : reinterpret_cast<uintptr_t>(memory);
  return true;
}

const bool is_set_up = set_up();

#endif

}  // namespace

#if defined(SIMT_RACE)

void* device_alloc(size_t bytes, bool sparse) {
  if (sparse && sparse_begin == 0) throw Error("cannot reserve address space for sparse buffers");
  size_t& used = sparse ? sparse_used : arena_used;
  used = (used + 15) / 16 * 16 + kGuard;
  if (used + bytes + kGuard > (sparse ? kSparseBytes : kArenaBytes)) throw Error("the test's buffers are too large");
  const uintptr_t at = (sparse ? sparse_begin : arena.begin) + used;
  used += bytes;
  buffers[at] = {bytes, sparse};
  void* const memory = reinterpret_cast<void*>(at);
  if (!sparse) std::memset(memory, kGarbage, bytes);
  return memory;
}

void device_free_all() {
  buffers.clear();
  arena_used = 0;
  if (sparse_used > 0) madvise(reinterpret_cast<void*>(sparse_begin), sparse_used + kGuard, MADV_DONTNEED);
  sparse_used = 0;
}

void set_epochs(const Epochs& now) { epochs = now; }

unsigned char* reserve_dynamic_shared(size_t bytes) {
  dynamic_used = bytes;
  return reinterpret_cast<unsigned char*>(dynamic.begin);
}

void atomic_access(void* pointer, size_t bytes) { on_access(pointer, bytes, true, true); }

#else

void* device_alloc(size_t bytes, bool sparse) {
  if (sparse) {
    void* const memory = map_zeros(bytes);
    mapped.emplace_back(memory, bytes);
    return memory;
  }
  void* const memory = std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  std::memset(memory, kGarbage, bytes);
  heap_blocks.push_back(memory);
  return memory;
}

void device_free_all() {
  for (void* const block : heap_blocks) std::free(block);
  heap_blocks.clear();
  for (const auto& [memory, bytes] : mapped) munmap(memory, bytes);
  mapped.clear();
}

void set_epochs(const Epochs&) {}

unsigned char* reserve_dynamic_shared(size_t bytes) {
  std::free(shared_block);
  shared_block = static_cast<unsigned char*>(std::malloc(bytes));
  if (bytes > 0) std::memset(shared_block, kGarbage, bytes);
  return shared_block;
}

void atomic_access(void*, size_t) {}

#endif

}  // namespace simt

#if defined(SIMT_RACE)

// What GCC's instrumentation calls.
#define SIMT_HOOKS(bytes)                                                                     \
  extern "C" void __tsan_read##bytes(void* p) { simt::on_access(p, bytes, false); }           \
  extern "C" void __tsan_write##bytes(void* p) { simt::on_access(p, bytes, true); }           \
  extern "C" void __tsan_unaligned_read##bytes(void* p) { simt::on_access(p, bytes, false); } \
  extern "C" void __tsan_unaligned_write##bytes(void* p) { simt::on_access(p, bytes, true); }
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
#undef SIMT_HOOKS
extern "C" void __tsan_read_range(void* p, unsigned long bytes) { simt::on_access(p, bytes, false); }
extern "C" void __tsan_write_range(void* p, unsigned long bytes) { simt::on_access(p, bytes, true); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}

#endif
