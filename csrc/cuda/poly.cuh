// The polynomial after a layer: Horner on residues held in registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "limb.cuh"

namespace mcfhe::cuda {

// Per-channel coefficient rows, [L, 1 or C, degree + 1].
struct PolyTable {
  const int64_t* coefficients;
  int64_t degree;          // 0: no polynomial
  int64_t channel_stride;  // entries between the rows of two channels; 0: one row for all

  // Row of limb l, channel c of `channels`.
  __device__ __forceinline__ const int64_t* row(int64_t l, int64_t c, int64_t channels) const {
    const int64_t rows = channel_stride == 0 ? 1 : channels;
    return coefficients + l * rows * (degree + 1) + c * channel_stride;
  }
};

// v[i] <- sum_d row[d] * v[i]^d mod b, canonical in and out. All threads that share `row` take the same branches; the
// row (0, 0, 1) is a square and costs one multiplication.
template <int kCount>
__device__ __forceinline__ void apply_poly(uint32_t (&v)[kCount], const int64_t* row, int64_t degree, const Limb& m) {
  if (degree == 2 && __ldg(row) == 0 && __ldg(row + 1) == 0 && __ldg(row + 2) == 1) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = mul_add_mod(v[i], v[i], 0, m);
    return;
  }
  uint32_t sum[kCount];
  const uint32_t leading = static_cast<uint32_t>(__ldg(row + degree));
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum[i] = leading;
  for (int64_t d = degree - 1; d >= 0; --d) {
    const uint32_t a = static_cast<uint32_t>(__ldg(row + d));
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] = mul_add_mod(sum[i], v[i], a, m);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) v[i] = sum[i];
}

}  // namespace mcfhe::cuda
