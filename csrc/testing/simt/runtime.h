// The host side of the SIMT harness: what the driver sets and asks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>

namespace simt {

// What a kernel did wrong.
class Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  uint64_t schedule = 0;     // 0: threads in order; 1: in reverse; else shuffled anew at every barrier, by this seed
  uint64_t edge_blocks = 0;  // 0: all blocks; n: the first n and the last n only
  int processors = 132;
  int double_ratio = 2;
  int major = 9;
};
Options& options();

// Names of the kernels run so far.
const std::set<std::string>& kernels_run();

// Device memory, exact to the byte: what lies around it is an error to touch. Sparse memory starts at zero and costs
// only the pages that are touched; races on it are not checked.
void* device_alloc(size_t bytes, bool sparse = false);
void device_free_all();

// --- between the scheduler and the memory check -------------------------------------------------------------------

inline constexpr unsigned kWarp = 32;

// Who is running, for the memory check.
struct Actor {
  uint32_t thread;      // within the block
  uint32_t warp_epoch;  // warp barriers passed in this block
};
const Actor* current_actor();

// Epochs number the intervals between barriers, over all blocks and launches.
struct Epochs {
  uint64_t launch, block, now;
};
void set_epochs(const Epochs& epochs);

unsigned char* reserve_dynamic_shared(size_t bytes);
std::string place_of_actor();

}  // namespace simt
