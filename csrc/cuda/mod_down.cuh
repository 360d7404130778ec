// Division by a modulus with rounding, limb by limb: the constants it needs, and its last step.
//
// With p the modulus divided by and a = (x mod p + floor(p / 2)) mod p in the natural order, the rounded quotient
// modulo q is (x - NTT(a - floor(p / 2))) p^-1: SEAL's divide_and_round_q_last_ntt, and the end of its
// switch_key_inplace.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ntt_rows.cuh"

namespace mcfhe::cuda {

// Of one limb, for divisions by one modulus p. In workspace, so that no block of a transform computes them again.
struct DivisionConstants {
  uint64_t mu;                 // floor((2^64 - 1) / q)
  uint32_t q, unit;            // floor(2^32 / q)
  uint32_t inverse, quotient;  // p^-1 mod q and its Shoup quotient; 0 for p itself
  uint32_t offset;             // -floor(p / 2) mod q, as a number 1..q
  uint32_t montgomery;         // q^-1 mod 2^32
};
inline constexpr int64_t kDivisionWords = sizeof(DivisionConstants) / sizeof(uint32_t);
static_assert(kDivisionWords == 8);  // keeps what follows in workspace aligned

// What intermediate polynomials may take of a call's workspace, unless a single one needs more: 32 MiB, which the
// second-level cache of a data-centre device holds, and polynomials enough for several blocks a multiprocessor.
inline constexpr int64_t kWorkspaceWords = int64_t{1} << 23;

// For `limbs` moduli and p = moduli[last].
cudaError_t launch_division_constants(int64_t limbs, int64_t last, const int64_t* moduli, DivisionConstants* constants,
                                      cudaStream_t stream);

// a of the part's polynomial, minus floor(p / 2), as an input of forward_part.
__device__ __forceinline__ Words shifted_words(const uint32_t* row, const DivisionConstants& c) {
  return {row, c.offset, c.unit, c.q};
}

// Canonical x, loose t -> canonical (x - t) p^-1.
__device__ __forceinline__ uint32_t divide(uint32_t x, uint32_t t, const DivisionConstants& c) {
  return canonical(mul_shoup_lazy(x + c.q - canonical(t, c.q), c.inverse, c.quotient, c.q), c.q);
}

}  // namespace mcfhe::cuda
