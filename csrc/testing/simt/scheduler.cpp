// Runs a grid: block after block, the threads of a block as fibers between barriers.
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "runtime.h"
#include "simt.h"

namespace simt {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxGridYZ = 65535;
constexpr size_t kMaxShared = 48 * 1024;
constexpr size_t kMaxExchange = 32;

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Thread {
  Fiber fiber;
  Index3 index;
  Actor actor{};
  State state = State::kDone;
  const char* file = nullptr;  // of the barrier it waits at
  int line = 0;
  alignas(16) unsigned char lent[2][kMaxExchange];  // to the warp; two buffers, so that one barrier an exchange does
};

// The grid being run.
struct Grid {
  const char* name = nullptr;
  const std::function<void()>* kernel = nullptr;
  Index3 grid, block, block_index;
  unsigned threads = 0;
  unsigned char* dynamic_shared = nullptr;
  std::string error;
};

// On the heap, away from the variables that count as shared memory.
Grid& grid = *new Grid;
std::vector<std::unique_ptr<Thread>> pool;
std::set<std::string> names;
Epochs epochs{1, 1, 1};
thread_local Thread* current = nullptr;

Thread& running() {
  if (current == nullptr) throw Error("device code called from the host");
  return *current;
}

[[noreturn]] void leave_for_good() {
  current->state = State::kDone;
  current->fiber.suspend(true);
  __builtin_trap();
}

void thread_main(void*) {
  (*grid.kernel)();
  leave_for_good();
}

std::string show(const Index3& i) {
  return "(" + std::to_string(i.x.value()) + ", " + std::to_string(i.y.value()) + ", " + std::to_string(i.z.value()) +
         ")";
}

std::string where(const Thread& thread) { return std::string(thread.file) + ":" + std::to_string(thread.line); }

void wait_at(State state, const char* file, int line) {
  Thread& me = running();
  me.state = state;
  me.file = file;
  me.line = line;
  me.fiber.suspend(false);
}

unsigned warp_begin(const Thread& thread) { return thread.actor.thread / kWarp * kWarp; }
unsigned warp_end(const Thread& thread) { return std::min(warp_begin(thread) + kWarp, grid.threads); }

bool same_place(const Thread& a, const Thread& b) { return a.line == b.line && std::string(a.file) == b.file; }

// Lets a warp go on when all its lanes wait at the same place.
void release_warp(const Thread& last) {
  for (unsigned i = warp_begin(last); i < warp_end(last); ++i) {
    const Thread& other = *pool[i];
    if (other.state != State::kAtWarpBarrier) return;
    if (!same_place(other, last)) {
      grid.error = "divergent warp: lanes wait at " + where(other) + " and at " + where(last);
      return;
    }
  }
  for (unsigned i = warp_begin(last); i < warp_end(last); ++i) {
    pool[i]->state = State::kReady;
    ++pool[i]->actor.warp_epoch;
  }
}

// Nobody can run: the block is done, or all wait at one barrier, or the barrier is divergent.
bool release_block() {
  const auto in_state = [](State state) {
    return std::count_if(pool.begin(), pool.begin() + grid.threads, [=](const auto& t) { return t->state == state; });
  };
  const auto done = in_state(State::kDone);
  if (done == static_cast<int64_t>(grid.threads)) return false;
  if (in_state(State::kAtWarpBarrier) > 0) {
    grid.error = "divergent warp: some lanes wait for lanes that have left or wait elsewhere";
    return false;
  }
  const Thread* first = nullptr;
  for (unsigned i = 0; i < grid.threads; ++i) {
    if (pool[i]->state != State::kAtBlockBarrier) continue;
    if (first == nullptr) first = pool[i].get();
    if (!same_place(*first, *pool[i])) {
      grid.error = "divergent barrier: threads wait at " + where(*first) + " and at " + where(*pool[i]);
      return false;
    }
  }
  if (done > 0) {
    grid.error =
        "divergent barrier: " + std::to_string(done) + " threads have left, the others wait at " + where(*first);
    return false;
  }
  for (unsigned i = 0; i < grid.threads; ++i) pool[i]->state = State::kReady;
  ++epochs.now;
  set_epochs(epochs);
  return true;
}

void run_block(const Index3& block_index, std::mt19937_64& random) {
  grid.block_index = block_index;
  epochs.block = ++epochs.now;
  set_epochs(epochs);
  for (unsigned i = 0; i < grid.threads; ++i) {
    pool[i]->state = State::kReady;
    pool[i]->actor.warp_epoch = 0;
    pool[i]->fiber.reset(&thread_main, nullptr);
  }
  std::vector<unsigned> order(grid.threads);
  std::iota(order.begin(), order.end(), 0u);
  if (options().schedule == 1) std::reverse(order.begin(), order.end());
  while (grid.error.empty()) {
    if (options().schedule > 1) std::shuffle(order.begin(), order.end(), random);
    bool moved = false;
    for (const unsigned i : order) {
      Thread& thread = *pool[i];
      if (thread.state != State::kReady) continue;
      moved = true;
      current = &thread;
      thread.fiber.resume();
      current = nullptr;
      if (thread.state == State::kAtWarpBarrier) release_warp(thread);
      if (!grid.error.empty()) return;
    }
    if (!moved && !release_block()) return;
  }
}

// Which blocks run, in which order.
std::vector<uint64_t> chosen_blocks(uint64_t count, std::mt19937_64& random) {
  const uint64_t edge = options().edge_blocks;
  std::vector<uint64_t> blocks;
  if (edge == 0 || count <= 2 * edge) {
    blocks.resize(count);
    std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  } else {
    for (uint64_t i = 0; i < edge; ++i) blocks.push_back(i);
    for (uint64_t i = count - edge; i < count; ++i) blocks.push_back(i);
  }
  if (options().schedule == 1) std::reverse(blocks.begin(), blocks.end());
  if (options().schedule > 1) std::shuffle(blocks.begin(), blocks.end(), random);
  return blocks;
}

}  // namespace

Options& options() {
  static Options instance;
  return instance;
}

const std::set<std::string>& kernels_run() { return names; }

const Actor* current_actor() { return current == nullptr ? nullptr : &current->actor; }

std::string place_of_actor() {
  return std::string(grid.name) + " block " + show(grid.block_index) + " thread " + show(running().index);
}

void fail(const std::string& message) {
  if (current == nullptr) throw Error(message);
  grid.error = message + " in " + place_of_actor();
  leave_for_good();
}

void fail_index(const char* operation, int64_t a, int64_t b) {
  fail("32-bit index overflow: " + std::string(operation) + " with operands " + std::to_string(a) + " and " +
       std::to_string(b));
}

const Index3& thread_index() { return running().index; }
const Index3& block_index() { return grid.block_index; }
const Index3& block_size() { return grid.block; }
const Index3& grid_size() { return grid.grid; }
unsigned char* dynamic_shared() { return grid.dynamic_shared; }
int lane_index() { return static_cast<int>(running().actor.thread % kWarp); }

void block_barrier(const char* file, int line) { wait_at(State::kAtBlockBarrier, file, line); }
void warp_barrier(const char* file, int line) { wait_at(State::kAtWarpBarrier, file, line); }

void warp_exchange(const void* mine, void* theirs, size_t bytes, int lane, const char* file, int line) {
  Thread& me = running();
  if (bytes > kMaxExchange || lane < 0 || lane >= static_cast<int>(kWarp)) fail("unsupported warp exchange");
  const unsigned buffer = me.actor.warp_epoch % 2;
  std::memcpy(me.lent[buffer], mine, bytes);
  warp_barrier(file, line);
  const unsigned other = warp_begin(me) + static_cast<unsigned>(lane);
  if (other >= warp_end(me)) fail("shuffle from a lane that does not exist");
  std::memcpy(theirs, pool[other]->lent[buffer], bytes);
}

void warp_gather(const void* mine, void* all, size_t bytes, const char* file, int line) {
  Thread& me = running();
  if (bytes > kMaxExchange || warp_end(me) - warp_begin(me) != kWarp) fail("unsupported warp exchange");
  const unsigned buffer = me.actor.warp_epoch % 2;
  std::memcpy(me.lent[buffer], mine, bytes);
  warp_barrier(file, line);
  for (unsigned i = 0; i < kWarp; ++i) {
    std::memcpy(static_cast<unsigned char*>(all) + i * bytes, pool[warp_begin(me) + i]->lent[buffer], bytes);
  }
}

cudaError_t run(const char* name, dim3 grid_size, dim3 block_size, size_t shared_bytes,
                const std::function<void()>& kernel) {
  const uint64_t threads = uint64_t{block_size.x} * block_size.y * block_size.z;
  const uint64_t blocks = uint64_t{grid_size.x} * grid_size.y * grid_size.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0 || grid_size.x > INT32_MAX || grid_size.y > kMaxGridYZ ||
      grid_size.z > kMaxGridYZ) {
    return cudaErrorInvalidConfiguration;
  }
  if (shared_bytes > kMaxShared) return cudaErrorInvalidValue;
  names.insert(name);
  grid.name = name;
  grid.kernel = &kernel;
  grid.grid = {grid_size.x, grid_size.y, grid_size.z};
  grid.block = {block_size.x, block_size.y, block_size.z};
  grid.threads = static_cast<unsigned>(threads);
  grid.dynamic_shared = reserve_dynamic_shared(shared_bytes);
  grid.error.clear();
  while (pool.size() < grid.threads) pool.push_back(std::make_unique<Thread>());
  for (unsigned i = 0; i < grid.threads; ++i) {
    pool[i]->actor.thread = i;
    pool[i]->index = {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y};
  }
  epochs.launch = ++epochs.now;
  std::mt19937_64 random(options().schedule);
  for (const uint64_t b : chosen_blocks(blocks, random)) {
    const auto x = static_cast<uint32_t>(b % grid_size.x);
    const auto y = static_cast<uint32_t>(b / grid_size.x % grid_size.y);
    const auto z = static_cast<uint32_t>(b / grid_size.x / grid_size.y);
    run_block({x, y, z}, random);
    if (!grid.error.empty()) throw Error(grid.error);
  }
  return cudaSuccess;
}

}  // namespace simt

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = simt::options().processors;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = simt::options().major;
      break;
    case cudaDevAttrSingleToDoublePrecisionPerfRatio:
      *value = simt::options().double_ratio;
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t /*stream*/) {
  std::memset(pointer, value, bytes);
  return cudaSuccess;
}
