// Blocking of the lattice kernels.
#include <algorithm>

#include "kernels.h"

namespace mcfhe::cpu {
namespace {

// Keys that stay in a third-level cache are read again for every position; larger ones once for several.
constexpr int64_t kSharedKeyWords = int64_t{1} << 21;
constexpr int64_t kMaxPositions = 4;

}  // namespace

int64_t tensor_square_tasks(const TensorSquareParams& p) {
  return p.limbs * p.channels * p.positions * ((p.n + kPointwiseBlock - 1) / kPointwiseBlock);
}

int64_t tensor_square_pool_tasks(const TensorSquareParams& p) {
  return p.limbs * p.channels * (p.positions / p.width / p.pool.h);
}

RelinearisePlan plan_relinearise(const RelineariseParams& p) {
  RelinearisePlan plan{};
  const int64_t key_words = p.limbs * 2 * (p.limbs + 1) * p.n;
  plan.positions = key_words <= kSharedKeyWords ? 1 : std::min(kMaxPositions, p.positions);
  plan.key_run = std::min(int64_t{16}, p.n);
  plan.packed_words = key_words;
  plan.scratch_words = (plan.positions * (p.limbs + 2) + p.limbs + 2) * p.n;
  return plan;
}

int64_t rescale_scratch_words(const RingParams& p) { return 2 * p.n; }

}  // namespace mcfhe::cpu
