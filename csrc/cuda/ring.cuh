// Arithmetic modulo one prime of a lattice ring on 32-bit words, and the butterflies made of it.
//
// q < 2^31, so that 2q fits a word and 4q does not: a residue between two butterflies is `loose`, 0 <= r < 2q, and
// `canonical`, 0 <= r < q, where it is stored. A constant factor comes with its Shoup quotient (modmath.h).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/modmath.h"

namespace mcfhe::cuda {

// Loose -> canonical. Below q the difference wraps around to above r.
__device__ __forceinline__ uint32_t canonical(uint32_t r, uint32_t q) {
  const uint32_t less = r - q;
  return less < r ? less : r;
}

// Any 32-bit x -> loose; unit = floor(2^32 / q), the quotient of the factor 1.
__device__ __forceinline__ uint32_t reduce_word(uint32_t x, uint32_t unit, uint32_t q) {
  return mul_shoup_lazy(x, 1, unit, q);
}

// Montgomery: loose x and canonical y -> x y 2^-32, loose; inverse = q^-1 mod 2^32. The upper word of x y is below
// 2 q^2 / 2^32 < q, so is that of m q, and the lower words of both are the same.
__device__ __forceinline__ uint32_t multiply_montgomery(uint32_t x, uint32_t y, uint32_t inverse, uint32_t q) {
  const uint64_t product = static_cast<uint64_t>(x) * y;
  const uint32_t m = static_cast<uint32_t>(product) * inverse;
  return static_cast<uint32_t>(product >> 32) - static_cast<uint32_t>((static_cast<uint64_t>(m) * q) >> 32) + q;
}

// q^-1 mod 2^32 for odd q, by Newton: q itself is right in 3 bits, each step doubles them.
__device__ __forceinline__ uint32_t inverse_of_word(uint32_t q) {
  uint32_t inverse = q;
#pragma unroll
  for (int i = 0; i < 4; ++i) inverse *= 2 - q * inverse;
  return inverse;
}

// One direction of the transform modulo q: row 0 and 1, or 2 and 3, of a limb's tables [4, n].
struct Roots {
  const uint32_t* factors;
  const uint32_t* quotients;
  uint32_t q;
};

__device__ __forceinline__ Roots forward_roots(const int32_t* tables, int64_t n, uint32_t q) {
  const uint32_t* const rows = reinterpret_cast<const uint32_t*>(tables);
  return {rows, rows + n, q};
}

__device__ __forceinline__ Roots inverse_roots(const int32_t* tables, int64_t n, uint32_t q) {
  const uint32_t* const rows = reinterpret_cast<const uint32_t*>(tables);
  return {rows + 2 * n, rows + 3 * n, q};
}

// kCount words, kCount = 1, 2 or 4, at a multiple of kCount.
template <int kCount>
__device__ __forceinline__ void load_words(const uint32_t* from, uint32_t (&words)[kCount]) {
  if constexpr (kCount == 1) {
    words[0] = __ldg(from);
  } else if constexpr (kCount == 2) {
    const uint2 pair = __ldg(reinterpret_cast<const uint2*>(from));
    words[0] = pair.x, words[1] = pair.y;
  } else {
    static_assert(kCount == 4);
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(from));
    words[0] = four.x, words[1] = four.y, words[2] = four.z, words[3] = four.w;
  }
}

// Cooley-Tukey: (x, y) <- (x + w y, x - w y). x loose and y any word -> loose.
__device__ __forceinline__ void forward_butterfly(uint32_t& x, uint32_t& y, uint32_t w, uint32_t quotient, uint32_t q) {
  const uint32_t a = canonical(x, q);
  const uint32_t b = canonical(mul_shoup_lazy(y, w, quotient, q), q);
  x = a + b;
  y = a - b + q;
}

// Gentleman-Sande: (x, y) <- (x + y, w (x - y)). Loose -> loose.
__device__ __forceinline__ void inverse_butterfly(uint32_t& x, uint32_t& y, uint32_t w, uint32_t quotient, uint32_t q) {
  const uint32_t a = canonical(x, q);
  const uint32_t b = canonical(y, q);
  x = a + b;
  y = mul_shoup_lazy(a - b + q, w, quotient, q);
}

// The butterflies of one stage among 2^kStages values: the stage's groups 2^kStage node, 2^kStage node + 1, ... of
// 2^(kStages - kStage) values each.
template <int kStages, int kStage, bool kForward>
__device__ __forceinline__ void stage(uint32_t* v, const Roots& roots, uint32_t node) {
  constexpr int kGroups = 1 << kStage;
  constexpr int kLoaded = kGroups < 4 ? kGroups : 4;
  constexpr int kHalf = 1 << (kStages - 1 - kStage);
#pragma unroll
  for (int first = 0; first < kGroups; first += kLoaded) {
    uint32_t w[kLoaded];
    uint32_t quotient[kLoaded];
    load_words(roots.factors + (node << kStage) + first, w);
    load_words(roots.quotients + (node << kStage) + first, quotient);
#pragma unroll
    for (int g = 0; g < kLoaded; ++g) {
#pragma unroll
      for (int i = 0; i < kHalf; ++i) {
        uint32_t& x = v[2 * kHalf * (first + g) + i];
        uint32_t& y = v[2 * kHalf * (first + g) + kHalf + i];
        if constexpr (kForward) {
          forward_butterfly(x, y, w[g], quotient[g], roots.q);
        } else {
          inverse_butterfly(x, y, w[g], quotient[g], roots.q);
        }
      }
    }
  }
}

// kStages <= 4 stages of a transform on 2^kStages values, all below the tree node `node` (ntt_block.cuh).
template <int kStages, int kStage = 0>
__device__ __forceinline__ void forward_stages(uint32_t* v, const Roots& roots, uint32_t node) {
  if constexpr (kStage < kStages) {
    stage<kStages, kStage, true>(v, roots, node);
    forward_stages<kStages, kStage + 1>(v, roots, node);
  }
}

template <int kStages, int kStage = kStages - 1>
__device__ __forceinline__ void inverse_stages(uint32_t* v, const Roots& roots, uint32_t node) {
  if constexpr (kStage >= 0) {
    stage<kStages, kStage, false>(v, roots, node);
    inverse_stages<kStages, kStage - 1>(v, roots, node);
  }
}

}  // namespace mcfhe::cuda
