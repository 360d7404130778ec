// ntt, tensor_square, relinearise and rescale on the CPU.
#include "../lattice_checks.h"

#include <algorithm>
#include <memory>
#include <new>

#include "../kernels/modmath.h"
#include "run.h"

namespace mcfhe::cpu {
namespace {

// Words on a cache line's boundary, so that no vector straddles two.
struct FreeWords {
  void operator()(uint32_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using WordBuffer = std::unique_ptr<uint32_t[], FreeWords>;
WordBuffer allocate_words(int64_t count) {
  WordBuffer words(new (std::align_val_t{64}) uint32_t[static_cast<size_t>(count)]);
  advise_huge_pages(words.get(), count * int64_t{sizeof(uint32_t)});
  return words;
}

// Runs `range(begin, end, scratch)` over all tasks of about `residues` entries with `words` words of scratch a thread.
template <class Range>
void run_with_scratch(int64_t tasks, int64_t residues, int64_t words, const Range& range) {
  torch::stable::parallel_for(0, tasks, grain_for(residues), [&](int64_t begin, int64_t end) {
    const WordBuffer scratch = allocate_words(words);
    range(begin, end, scratch.get());
  });
}

// Shape of x with another size of its first and last axis.
IntList reshaped(const Tensor& x, int64_t limbs, int64_t stream) {
  IntList shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  shape.front() = limbs;
  shape.back() = stream;
  return shape;
}

// `moduli` and `tables` are dense and outlive the job.
RingTables ring_tables(const char* op, const Tensor& moduli, const Tensor& tables, int64_t n) {
  const int64_t count = moduli.numel();
  const int64_t* m = moduli.const_data_ptr<int64_t>();
  check_ring_moduli(op, m, count, n);
  check_ring_tables(op, tables.const_data_ptr<int32_t>(), m, count, n);
  return {m, reinterpret_cast<const uint32_t*>(tables.const_data_ptr<int32_t>()), n};
}

// divisor^-1 modulo each of the first `count` moduli.
std::vector<uint32_t> inverses(const char* op, const RingTables& ring, int64_t count, int64_t divisor) {
  check_coprime_to(op, ring.moduli, count, divisor);
  std::vector<uint32_t> out;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t q = ring.moduli[i];
    out.push_back(inverse_word(static_cast<uint32_t>(divisor % q), static_cast<uint32_t>(q)));
  }
  return out;
}

Tensor ntt(const Tensor& x, const Tensor& tables, const Tensor& moduli, bool inverse) {
  const char* const op = "ntt";
  const RingParams p = ntt_params(op, x, tables, moduli);
  const Tensor xd = dense(x), td = dense(tables), md = dense(moduli);
  const RingTables ring = ring_tables(op, md, td, p.n);
  const Tensor y = empty_like_shape(x, reshaped(x, p.limbs, x.size(x.dim() - 1)));
  if (y.numel() == 0) return y;
  BadResidue bad;
  const LatticeKernels& table = lattice_kernels(p.n);
  const NttJob job{p, ring, inverse, xd.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), &bad};
  run_with_scratch(p.limbs * p.runs, p.n, p.n, [&](int64_t begin, int64_t end, uint32_t* scratch) {
    for (int64_t task = begin; task < end; ++task) table.ntt(job, task, scratch);
  });
  refuse_bad_residue(op, bad);
  return y;
}

Tensor tensor_square(const Tensor& x, std::optional<Tensor> shift, std::optional<Tensor> coefficients,
                     const Tensor& moduli, std::optional<IntList> pool) {
  const char* const op = "tensor_square";
  const TensorSquareParams p = tensor_square_params(op, x, shift, coefficients, moduli, pool);
  const Tensor md = checked_moduli(op, moduli);
  const Tensor xd = dense(x);
  const std::optional<Tensor> sd = dense(shift), cd = dense(coefficients);
  check_table(op, "shift", sd, md);
  check_table(op, "coefficients", cd, md);
  const Tensor y = empty_like_shape(x, tensor_square_shape(x, p));
  if (y.numel() == 0) return y;
  BadResidue bad;
  const TensorSquareJob job{p,
                            xd.const_data_ptr<int64_t>(),
                            data_or_null(sd),
                            data_or_null(cd),
                            md.const_data_ptr<int64_t>(),
                            y.mutable_data_ptr<int64_t>(),
                            &bad};
  const LatticeKernels& table = kernels().lattice;
  const auto kernel = p.pooled() ? table.tensor_square_pool : table.tensor_square;
  const int64_t tasks = p.pooled() ? tensor_square_pool_tasks(p) : tensor_square_tasks(p);
  torch::stable::parallel_for(0, tasks, grain_for(xd.numel() / tasks), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) kernel(job, task);
  });
  refuse_bad_residue(op, bad);
  return y;
}

Tensor relinearise(const Tensor& x, const Tensor& keys, const Tensor& tables, const Tensor& moduli) {
  const char* const op = "relinearise";
  const RelineariseParams p = relinearise_params(op, x, keys, tables, moduli);
  const Tensor xd = dense(x), kd = dense(keys), td = dense(tables), md = dense(moduli);
  const RingTables ring = ring_tables(op, md, td, p.n);
  const std::vector<uint32_t> inverse = inverses(op, ring, p.limbs, ring.moduli[p.limbs]);
  const Tensor y = empty_like_shape(x, reshaped(x, p.limbs, 2 * p.n));
  if (y.numel() == 0) return y;
  const RelinearisePlan plan = plan_relinearise(p);
  const WordBuffer packed = allocate_words(plan.packed_words);
  BadResidue bad_key, bad;
  const RelineariseJob job{p,
                           plan,
                           ring,
                           xd.const_data_ptr<int64_t>(),
                           kd.const_data_ptr<int64_t>(),
                           packed.get(),
                           inverse.data(),
                           y.mutable_data_ptr<int64_t>(),
                           &bad};
  RelineariseJob keys_job = job;
  keys_job.bad = &bad_key;
  const LatticeKernels& table = lattice_kernels(p.n);
  torch::stable::parallel_for(0, kd.numel() / p.n, grain_for(p.n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) table.pack_keys(keys_job, row, packed.get());
  });
  STD_TORCH_CHECK(!bad_key.seen.load(),
                  "mcfhe::relinearise: keys holds a value outside 0 <= r < q of its modulus; keys made for other "
                  "moduli?");
  run_with_scratch(p.positions, p.n * p.limbs * p.limbs, job.plan.scratch_words,
                   [&](int64_t begin, int64_t end, uint32_t* scratch) {
                     for (int64_t first = begin; first < end; first += job.plan.positions) {
                       table.relinearise(job, first, std::min(end - first, job.plan.positions), scratch);
                     }
                   });
  refuse_bad_residue(op, bad);
  return y;
}

Tensor rescale(const Tensor& x, const Tensor& tables, const Tensor& moduli) {
  const char* const op = "rescale";
  const RingParams p = rescale_params(op, x, tables, moduli);
  const Tensor xd = dense(x), td = dense(tables), md = dense(moduli);
  const RingTables ring = ring_tables(op, md, td, p.n);
  const std::vector<uint32_t> inverse = inverses(op, ring, p.limbs - 1, ring.moduli[p.limbs - 1]);
  const Tensor y = empty_like_shape(x, reshaped(x, p.limbs - 1, x.size(x.dim() - 1)));
  if (y.numel() == 0) return y;
  BadResidue bad;
  const LatticeKernels& table = lattice_kernels(p.n);
  const RescaleJob job{p, ring, xd.const_data_ptr<int64_t>(), inverse.data(), y.mutable_data_ptr<int64_t>(), &bad};
  run_with_scratch(p.runs, p.n * p.limbs, rescale_scratch_words(p), [&](int64_t begin, int64_t end, uint32_t* scratch) {
    for (int64_t task = begin; task < end; ++task) table.rescale(job, task, scratch);
  });
  refuse_bad_residue(op, bad);
  return y;
}

}  // namespace
}  // namespace mcfhe::cpu

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CPU, m) {
  m.impl("ntt", TORCH_BOX(&mcfhe::cpu::ntt));
  m.impl("tensor_square", TORCH_BOX(&mcfhe::cpu::tensor_square));
  m.impl("relinearise", TORCH_BOX(&mcfhe::cpu::relinearise));
  m.impl("rescale", TORCH_BOX(&mcfhe::cpu::rescale));
}
