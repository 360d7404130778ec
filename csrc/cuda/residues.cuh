// Residues of a thread of a pointwise kernel: one, or two at once where 16-byte accesses are possible.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

namespace mcfhe::cuda {

// kWidth residues at x[index]; kWidth = 2 needs 16-byte alignment.
template <int kWidth>
__device__ __forceinline__ void load_residues(const int64_t* x, int64_t index, uint32_t (&v)[kWidth]) {
  if constexpr (kWidth == 2) {
    const longlong2 pair = __ldg(reinterpret_cast<const longlong2*>(x + index));
    v[0] = static_cast<uint32_t>(pair.x);
    v[1] = static_cast<uint32_t>(pair.y);
  } else {
    v[0] = static_cast<uint32_t>(__ldg(x + index));
  }
}

template <int kWidth>
__device__ __forceinline__ void store_residues(int64_t* y, int64_t index, const uint32_t (&v)[kWidth]) {
  if constexpr (kWidth == 2) {
    *reinterpret_cast<longlong2*>(y + index) = make_longlong2(v[0], v[1]);
  } else {
    y[index] = static_cast<int64_t>(v[0]);
  }
}

inline bool aligned16(std::initializer_list<const void*> pointers) {
  return std::all_of(pointers.begin(), pointers.end(),
                     [](const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; });
}

}  // namespace mcfhe::cuda
