// What the lattice kernels read and write: polynomials as rows of int64 tensors and of packed words in workspace.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ntt_block.cuh"
#include "residues.cuh"

namespace mcfhe::cuda {

// Canonical residues of an int64 tensor; `row` is one polynomial of it.
struct Residues {
  const int64_t* row;

  __device__ __forceinline__ uint32_t operator()(int64_t i) const { return static_cast<uint32_t>(__ldg(row + i)); }
  __device__ __forceinline__ uint32_t reduce(uint32_t x) const { return x; }
};

// Packed words below 2^31 of another modulus, plus offset <= q: below 2^32.
struct Words {
  const uint32_t* row;
  uint32_t offset, unit, q;

  __device__ __forceinline__ uint32_t operator()(int64_t i) const { return __ldg(row + i) + offset; }
  __device__ __forceinline__ uint32_t reduce(uint32_t x) const { return reduce_word(x, unit, q); }
};

// Where the polynomials of a tensor or workspace begin, in entries: polynomial `row` of limb `limb`.
struct Rows {
  int64_t limb_stride, row_stride;

  __device__ __forceinline__ int64_t at(int64_t limb, int64_t row) const {
    return limb * limb_stride + row * row_stride;
  }
};

// A pair of the part that starts at `row`, 16 bytes a lane.
__device__ __forceinline__ uint2 load_pair(const int64_t* row, int64_t pair) {
  const longlong2 two = __ldg(reinterpret_cast<const longlong2*>(row) + pair);
  return make_uint2(static_cast<uint32_t>(two.x), static_cast<uint32_t>(two.y));
}

template <class S>
__device__ __forceinline__ void load_pairs(const int64_t* row, const Part<S>& part, uint32_t (&v)[kValues]) {
  for_pairs(part, [&](int r, int pair) {
    const uint2 two = load_pair(row, pair);
    v[2 * r] = two.x, v[2 * r + 1] = two.y;
  });
}

__device__ __forceinline__ void store_pair(int64_t* row, int64_t pair, uint32_t x, uint32_t y) {
  reinterpret_cast<longlong2*>(row)[pair] = make_longlong2(x, y);
}

// 1/n of inverse transforms, and what is added after it.
struct Scale {
  uint32_t factor, quotient, addend, q;

  __device__ __forceinline__ Scale(const Roots& inverse, uint32_t addend_)
      : factor(__ldg(inverse.factors)), quotient(__ldg(inverse.quotients)), addend(addend_), q(inverse.q) {}

  // Any word -> canonical.
  __device__ __forceinline__ uint32_t operator()(uint32_t x) const {
    return canonical(canonical(mul_shoup_lazy(x, factor, quotient, q), q) + addend, q);
  }
};

inline int log2_exact(int64_t n) {
  int log = 0;
  while (int64_t{1} << log < n) ++log;
  return log;
}

inline bool is_ring_degree(int64_t n) {
  const int log = log2_exact(n);
  return int64_t{1} << log == n && log >= kMinRingLog && log <= kMaxRingLog;
}

}  // namespace mcfhe::cuda
