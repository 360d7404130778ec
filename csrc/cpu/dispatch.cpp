// Picks the kernel table for the processor this runs on.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace mcfhe::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

const KernelTable& choose() {
  const char* forced = std::getenv("MCFHE_CPU_ISA");
  const std::string name = forced == nullptr ? "" : forced;
  if (name == "generic") return kGenericKernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (name == "avx2" || name == "avx512") {
    const bool there = name == "avx2" ? has_avx2() : has_avx512();
    if (!there) throw std::runtime_error("MCFHE_CPU_ISA=" + name + ": this processor lacks it; unset the variable");
    return name == "avx2" ? kAvx2Kernels : kAvx512Kernels;
  }
  if (name.empty()) return has_avx512() ? kAvx512Kernels : has_avx2() ? kAvx2Kernels : kGenericKernels;
#else
  if (name.empty()) return kGenericKernels;
#endif
  throw std::runtime_error("MCFHE_CPU_ISA=" + name + ": choose generic, avx2 or avx512 as this processor allows");
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable& table = choose();
  return table;
}

const LatticeKernels& lattice_kernels(int64_t n) {
  const LatticeKernels& best = kernels().lattice;
  return n >= best.min_degree ? best : kGenericKernels.lattice;
}

const char* isa_name() { return kernels().name; }

const char* path_name(Path path) {
  switch (path) {
    case Path::kInt16:
      return "int16";
    case Path::kDouble:
      return "double";
    case Path::kInt64:
      return "int64";
    case Path::kInt64Mid:
      return "int64-mid";
  }
  return "?";
}

int64_t pointwise_tasks(const PointwiseParams& p) {
  return p.limbs * p.channels * ((p.inner + kPointwiseBlock - 1) / kPointwiseBlock);
}

}  // namespace mcfhe::cpu
