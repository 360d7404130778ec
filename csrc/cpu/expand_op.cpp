// expand_uniform on the CPU.
#include "../checks.h"
#include "run.h"

namespace mcfhe::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kSeedBytes = 64;
constexpr int64_t kMaxDegree = 32768;

// The same bytes where words may be read: a view into a buffer may begin anywhere.
Tensor aligned(const Tensor& t) {
  const bool good = reinterpret_cast<uintptr_t>(t.const_data_ptr<uint8_t>()) % alignof(uint64_t) == 0;
  return good ? t : torch::stable::clone(t);
}

Tensor expand_uniform(const Tensor& seeds, const Tensor& moduli, int64_t n) {
  const char* const op = "expand_uniform";
  STD_TORCH_CHECK(seeds.scalar_type() == ScalarType::Byte && seeds.dim() == 2 && seeds.size(1) == kSeedBytes,
                  "mcfhe::expand_uniform: seeds has shape ", shape_string(seeds),
                  " but must be uint8 [count, 64], one seed a row");
  check_int64(op, "moduli", moduli);
  check_same_device(op, "moduli", moduli, seeds);
  STD_TORCH_CHECK(moduli.dim() == 1, "mcfhe::expand_uniform: moduli has shape ", shape_string(moduli),
                  " but must be [limbs]");
  STD_TORCH_CHECK(n >= 1 && n <= kMaxDegree, "mcfhe::expand_uniform: n = ", n, " must lie in 1..", kMaxDegree);
  const Tensor sd = aligned(dense(seeds)), md = checked_moduli(op, moduli);
  const int64_t limbs = md.numel(), count = sd.size(0);
  const Tensor y = torch::stable::new_empty(seeds, IntList{limbs, count, n}, ScalarType::Int);
  if (y.numel() == 0) return y;
  const ExpandJob job{limbs,
                      count,
                      n,
                      reinterpret_cast<const uint64_t*>(sd.const_data_ptr<uint8_t>()),
                      md.const_data_ptr<int64_t>(),
                      y.mutable_data_ptr<int32_t>()};
  torch::stable::parallel_for(0, count, grain_for(limbs * n), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernels().expand_uniform(job, task);
  });
  return y;
}

}  // namespace
}  // namespace mcfhe::cpu

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CPU, m) { m.impl("expand_uniform", TORCH_BOX(&mcfhe::cpu::expand_uniform)); }
