// Runs a job's tasks on torch's own threads.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../checks.h"
#include "kernels.h"

namespace mcfhe::cpu {

// Contiguous copy where needed; the tensor itself otherwise.
inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(dense(*t)) : std::nullopt;
}
inline const int64_t* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr<int64_t>() : nullptr;
}

// Asks for huge pages where whole ones fit: fresh memory otherwise costs a page fault every 512 residues, which takes
// several times as long as a pointwise op.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{1} << 21;
  const uintptr_t start = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (start + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // only advice: may fail
#endif
}
inline Tensor empty_like_shape(const Tensor& x, const IntList& shape) {
  const Tensor y = torch::stable::new_empty(x, shape);
  if (y.numel() > 0) advise_huge_pages(y.mutable_data_ptr<int64_t>(), y.numel() * int64_t{sizeof(int64_t)});
  return y;
}

inline void refuse_bad_residue(const char* op, const BadResidue& bad, const char* name = "x") {
  STD_TORCH_CHECK(!bad.seen.load(), "mcfhe::", op, ": ", name,
                  " holds a value outside 0 <= r < b of its limb; reduce it modulo the limb's modulus first");
}

// moduli as dense host memory, every value checked.
inline Tensor checked_moduli(const char* op, const Tensor& moduli) {
  Tensor m = dense(moduli);
  check_moduli_values(op, m.const_data_ptr<int64_t>(), m.numel());
  return m;
}
inline void check_table(const char* op, const char* name, const std::optional<Tensor>& table, const Tensor& moduli) {
  if (!table.has_value() || moduli.numel() == 0) return;
  check_table_values(op, name, table->const_data_ptr<int64_t>(), moduli.const_data_ptr<int64_t>(), moduli.numel(),
                     table->numel() / moduli.numel());
}

// Work of roughly this many residues is worth a thread of its own.
constexpr int64_t kGrainResidues = 16384;
inline int64_t grain_for(int64_t residues_per_task) {
  return residues_per_task <= 0 ? 1 : (kGrainResidues + residues_per_task - 1) / residues_per_task;
}

}  // namespace mcfhe::cpu
