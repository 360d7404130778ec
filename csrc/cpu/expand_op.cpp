// expand_uniform on the CPU.
#include "../lattice_checks.h"
#include "run.h"

namespace mcfhe::cpu {
namespace {

using torch::headeronly::ScalarType;

// The same bytes where words may be read: a view into a buffer may begin anywhere.
Tensor aligned(const Tensor& t) {
  const bool good = reinterpret_cast<uintptr_t>(t.const_data_ptr<uint8_t>()) % alignof(uint64_t) == 0;
  return good ? t : torch::stable::clone(t);
}

Tensor expand_uniform(const Tensor& seeds, const Tensor& moduli, int64_t n) {
  const char* const op = "expand_uniform";
  const ExpandParams p = expand_params(op, seeds, moduli, n);
  const Tensor sd = aligned(dense(seeds)), md = checked_moduli(op, moduli);
  const Tensor y = torch::stable::new_empty(seeds, IntList{p.limbs, p.count, p.n}, ScalarType::Int);
  if (y.numel() == 0) return y;
  const ExpandJob job{p, reinterpret_cast<const uint64_t*>(sd.const_data_ptr<uint8_t>()), md.const_data_ptr<int64_t>(),
                      y.mutable_data_ptr<int32_t>()};
  torch::stable::parallel_for(0, p.count, grain_for(p.limbs * p.n), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernels().expand_uniform(job, task);
  });
  return y;
}

}  // namespace
}  // namespace mcfhe::cpu

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CPU, m) { m.impl("expand_uniform", TORCH_BOX(&mcfhe::cpu::expand_uniform)); }
