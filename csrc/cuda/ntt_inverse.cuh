// Inverse transforms of int64 polynomials, for ntt itself and for the ops that divide by a modulus.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ntt_rows.cuh"

namespace mcfhe::cuda {

// What follows the transform.
enum class Rounding {
  kNone,
  kHalf,  // plus floor(q / 2), modulo q: rounds a division by q
};

__device__ __forceinline__ uint32_t rounding_addend(Rounding rounding, uint32_t q) {
  return rounding == Rounding::kHalf ? q >> 1 : 0u;
}

// Of `count` rows of each of `limbs` limbs; neither is 0. Out is int64_t or uint32_t; the output is canonical.
template <typename Out>
cudaError_t launch_inverse(int64_t n, int64_t limbs, int64_t count, Rows in, Rows out, Rounding rounding,
                           const int64_t* x,       // rows as `in` says
                           const int32_t* tables,  // [limbs, 4, n]
                           const int64_t* moduli,  // [limbs]
                           Out* y,                 // rows as `out` says
                           cudaStream_t stream);

// What launch_inverse does after the parts of polynomials with n > 8192, in place on loose words; nothing up to 8192.
template <typename Word>
cudaError_t launch_inverse_tail(int64_t n, int64_t limbs, int64_t count, Rows rows, Rounding rounding,
                                const int32_t* tables,  // [limbs, 4, n]
                                const int64_t* moduli,  // [limbs]
                                Word* y,                // rows as `rows` says
                                cudaStream_t stream);

}  // namespace mcfhe::cuda
