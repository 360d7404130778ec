// The CPU kernels' interface: torch-free, one table of functions per instruction set.
//
// A kernel call is a job: sizes, pointers and a plan. A job is cut into independent tasks; the caller runs any
// task range on any thread. Tasks check the range of the residues they read and report it through `BadResidue`.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "../kernels/params.h"
#include "lattice_jobs.h"

namespace mcfhe::cpu {

// How a convolution multiplies and adds. All give the same residues; the plan takes the first that is proved to fit.
enum class Path {
  kInt16,    // residues split in two signed 16-bit halves, 32-bit sums
  kDouble,   // residues as doubles, sums below 2^53
  kInt64,    // 32 x 32 -> 64-bit products, one reduction at the end
  kInt64Mid  // the same, reduced every few taps
};
const char* path_name(Path path);

// Set by any task that reads a value outside 0 <= r < b.
struct BadResidue {
  std::atomic<bool> seen{false};
};

struct ConvPlan {
  ConvParams p;     // out_h and out_w without what fills no window of the pool
  bool pooled;      // sums of windows are stored
  PoolWindow pool;  // 1 x 1 without a pool
  Path path;
  bool pair_rows;     // kInt16: the two factors of a pair are kernel rows i, i + 1 instead of channels c, c + 1
  bool flat;          // a whole output row (ow, s) is one contiguous run; otherwise a run is one block of s
  int64_t block_s;    // streams in a block
  int64_t blocks_s;   // blocks that cover the stream
  int64_t band_rows;  // output rows in a band, whole windows
  int64_t bands;      // bands that cover the output
  int64_t phases;     // input columns are stored by column modulo stride_w, so that runs stay contiguous
  int64_t positions;  // padded columns per phase
  int64_t pitch;      // packed elements per input row
  int64_t rows;       // padded input rows in a band
  int64_t planes;     // packed channels (or channel pairs) of one group
  int64_t taps;       // multiply steps per output
  int64_t taps_per_reduction;  // kInt64Mid
  int64_t tile;                // output channels of the microkernel
  int64_t packed_elements;     // scratch for packed input, in elements of the path
  int64_t sums_offset;         // bytes into the scratch: sums of the pool, [output of the group][run]
  int64_t scratch_bytes;       // everything a task needs
  int64_t weight_bytes;        // packed weights of the whole layer
  int64_t tasks;
};

struct ConvJob {
  ConvPlan plan;
  const int64_t* x;        // [L, C, H, W, S]
  const int64_t* weight;   // [O, C / groups, KH, KW]
  const int64_t* bias;     // [L, O] or null
  const int64_t* poly;     // [L, 1 or O, degree + 1] or null
  const int64_t* factor;   // [L] or null; of the pool
  const int64_t* moduli;   // [L]
  const int64_t* offsets;  // [taps], see fill_offsets
  const void* packed_weight;
  int64_t* y;  // [L, O, OH, OW, S], with a pool [L, O, OH / h, OW / w, S]
  BadResidue* bad;
};

struct PoolJob {
  PoolParams p;
  const int64_t* x;       // [L, C, H, W, S]
  const int64_t* factor;  // [L] or null
  const int64_t* moduli;  // [L]
  int64_t* y;             // [L, C, OH, OW, S]
  BadResidue* bad;
};

struct PolyJob {
  PointwiseParams p;
  const int64_t* x;      // [L, C, inner]
  const int64_t* table;  // [L, 1 or C, degree + 1]
  int64_t degree;
  int64_t channel_stride;  // 0: one row for all channels
  const int64_t* moduli;   // [L]
  int64_t* y;              // [L, C, inner]
  BadResidue* bad;
};

// x plus one constant a channel in the first `head` of every `stream` entries; the rest is copied.
struct AddConstJob {
  PointwiseParams p;
  const int64_t* x;         // [L, C, inner]
  const int64_t* constant;  // [L, 1 or C]
  int64_t channel_stride;   // 0: one constant for all channels
  int64_t stream, head;     // stream divides inner, 0 <= head <= stream
  const int64_t* moduli;    // [L]
  int64_t* y;               // [L, C, inner]
  BadResidue* bad;
};

struct AlignAddJob {
  PointwiseParams p;
  const int64_t* x;         // [L, C, inner]
  const int64_t* y;         // [L, C, inner]
  const int64_t* x_factor;  // [L] or null
  const int64_t* y_factor;  // [L] or null
  const int64_t* moduli;    // [L]
  int64_t* z;               // [L, C, inner]
  BadResidue* bad;
};

// Uniform residues from public seeds; task: one seed.
struct ExpandJob {
  ExpandParams p;
  const uint64_t* seeds;  // [count, 8]
  const int64_t* moduli;  // [L]
  int32_t* y;             // [L, count, n]
};

// Pointwise jobs are cut into blocks of this many entries of one (limb, channel) row.
constexpr int64_t kPointwiseBlock = 4096;
int64_t pointwise_tasks(const PointwiseParams& p);

struct KernelTable {
  const char* name;
  bool has_int16, has_double;
  int64_t tile;  // output channels of the microkernel
  void (*pack_weight)(const ConvJob&, void* packed);
  void (*conv2d)(const ConvJob&, int64_t task, std::byte* scratch);
  void (*sum_pool2d)(const PoolJob&, int64_t task);  // task: one (l, c, output row)
  void (*poly)(const PolyJob&, int64_t task);
  void (*align_add)(const AlignAddJob&, int64_t task);
  void (*add_const)(const AddConstJob&, int64_t task);  // task: one run of `stream` entries
  // Entries of x[begin, end) that are not in 0 <= x < b.
  int64_t (*count_out_of_range)(const int64_t* x, int64_t begin, int64_t end, int64_t b);
  LatticeKernels lattice;
  void (*expand_uniform)(const ExpandJob&, int64_t task);
};

// The table for this processor, or the one MCFHE_CPU_ISA = generic | avx2 | avx512 names. Throws std::runtime_error
// when that one is unknown or the processor lacks it.
const KernelTable& kernels();
const char* isa_name();
// The lattice kernels of kernels(), or the generic ones for rings too small for these.
const LatticeKernels& lattice_kernels(int64_t n);

// Chooses path, blocking and task count. `max_abs` and `max_sum` bound |q| and the sum of |q| over one output; at least
// one window of the pool fits the output.
ConvPlan plan_conv2d(const ConvParams& p, std::optional<PoolWindow> pool, int64_t max_abs, int64_t max_sum,
                     int64_t max_modulus, const KernelTable& table);
// Packed-input offset of every tap from an output column's base, in the order the packed weights use.
void fill_offsets(const ConvPlan& plan, int64_t* offsets);

extern const KernelTable kGenericKernels;
#if defined(__x86_64__)
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
#endif

}  // namespace mcfhe::cpu
