// The lattice ops as jobs of independent tasks; see kernels.h.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "../kernels/params.h"

namespace mcfhe::cpu {

struct BadResidue;

// Tables of the transform, [limbs, 4, n]: roots, their Shoup quotients, inverse roots, theirs.
struct RingTables {
  const int64_t* moduli;   // [limbs], primes q = 1 mod 2n below 2^31
  const uint32_t* tables;  // [limbs, 4, n]
  int64_t n;
};

// Task: one run of n residues of one limb. Scratch: n words.
struct NttJob {
  RingParams p;
  RingTables ring;
  bool inverse;
  const int64_t* x;  // [L, runs, n]
  int64_t* y;        // [L, runs, n]
  BadResidue* bad;
};

// Task: one block of one polynomial pair; with a pool, one row of windows of one channel. No scratch.
struct TensorSquareJob {
  TensorSquareParams p;
  const int64_t* x;             // [L, C, positions, 2 n]
  const int64_t* shift;         // [L, 1 or C] or null
  const int64_t* coefficients;  // [L, 1 or C, 3] or null
  const int64_t* moduli;        // [L]
  int64_t* y;                   // [L, C, positions, 3 n], with a pool [L, C, OH, OW, 3 n]
  BadResidue* bad;
};
int64_t tensor_square_tasks(const TensorSquareParams& p);
int64_t tensor_square_pool_tasks(const TensorSquareParams& p);

// Keys are packed in the order they are read: [L + 1, n / key_run, L, 2, key_run].

struct RelinearisePlan {
  int64_t positions;  // in a task, which share a reading of the keys
  int64_t key_run;    // words, a multiple of every vector's
  int64_t packed_words;
  int64_t scratch_words;
};
RelinearisePlan plan_relinearise(const RelineariseParams& p);

// Task: up to plan.positions positions, all limbs.
struct RelineariseJob {
  RelineariseParams p;
  RelinearisePlan plan;
  RingTables ring;          // L + 1 limbs, the special prime last
  const int64_t* x;         // [L, positions, 3 n]
  const int64_t* keys;      // [L, 2, L + 1, n]
  const uint32_t* packed;   // made by pack_keys
  const uint32_t* inverse;  // [L], special prime^-1 mod q_l
  int64_t* y;               // [L, positions, 2 n]
  BadResidue* bad;
};

// Task: one run of n residues, all limbs.
struct RescaleJob {
  RingParams p;
  RingTables ring;
  const int64_t* x;         // [L, runs, n]
  const uint32_t* inverse;  // [L - 1], last prime^-1 mod q_l
  int64_t* y;               // [L - 1, runs, n]
  BadResidue* bad;
};
int64_t rescale_scratch_words(const RingParams& p);

// The lattice part of a KernelTable.
struct LatticeKernels {
  int64_t min_degree;  // of ntt, pack_keys, relinearise and rescale
  void (*ntt)(const NttJob&, int64_t task, uint32_t* scratch);
  void (*tensor_square)(const TensorSquareJob&, int64_t task);
  void (*tensor_square_pool)(const TensorSquareJob&, int64_t task);
  // Task: one row of n residues of the keys.
  void (*pack_keys)(const RelineariseJob&, int64_t task, uint32_t* packed);
  void (*relinearise)(const RelineariseJob&, int64_t first, int64_t count, uint32_t* scratch);
  void (*rescale)(const RescaleJob&, int64_t task, uint32_t* scratch);
};

}  // namespace mcfhe::cpu
