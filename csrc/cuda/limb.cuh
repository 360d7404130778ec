// Reductions modulo one limb on the device, with the constants they need. See modmath.h for the terms; here the last
// steps run on 32 bits, since b < 2^31 keeps every unfinished remainder below 2^32.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/modmath.h"

namespace mcfhe::cuda {

struct Limb {
  uint64_t mu;     // floor((2^64 - 1) / b)
  double real;     // b
  double inverse;  // 1 / b, rounded
  uint32_t b;      // 2 <= b < 2^31
};

__device__ __forceinline__ Limb make_limb(int64_t b) {
  const Modulus m = make_modulus(b);
  return {m.mu, static_cast<double>(b), 1.0 / static_cast<double>(b), static_cast<uint32_t>(b)};
}

// r < 2b -> canonical.
__device__ __forceinline__ uint32_t correct(uint32_t r, const Limb& m) { return r >= m.b ? r - m.b : r; }

// Any x -> canonical. barrett_u64's proof gives 0 <= x - q * b < 2b < 2^32, so 32 bits carry the difference.
__device__ __forceinline__ uint32_t barrett(uint64_t x, const Limb& m) {
  const uint32_t q = static_cast<uint32_t>(mulhi_u64(x, m.mu));
  return correct(static_cast<uint32_t>(x) - q * m.b, m);
}

// Canonical x, y -> canonical sum.
__device__ __forceinline__ uint32_t add_mod(uint32_t x, uint32_t y, const Limb& m) { return correct(x + y, m); }

// Canonical x, y and z -> canonical x * y + z; the sum stays below 2^62 + 2^31.
__device__ __forceinline__ uint32_t mul_add_mod(uint32_t x, uint32_t y, uint32_t z, const Limb& m) {
  return barrett(static_cast<uint64_t>(x) * y + z, m);
}

// |x| <= 2^32 * (b - 1) -> canonical. Adding 2^32 * b makes the sum non-negative and keeps it below 2^64.
__device__ __forceinline__ uint32_t reduce_bounded(int64_t x, const Limb& m) {
  return barrett(static_cast<uint64_t>(x) + (static_cast<uint64_t>(m.b) << 32), m);
}

// Any int64 x -> canonical.
__device__ __forceinline__ uint32_t reduce_any(int64_t x, const Limb& m) {
  const uint64_t sign = static_cast<uint64_t>(x >> 63);
  const uint32_t r = barrett(static_cast<uint64_t>(x) ^ sign, m);
  return sign != 0 ? m.b - 1 - r : r;
}

// An exact integer |x| <= 2^22 * (b - 1) held in a double -> canonical.
//
// Adding 1.5 * 2^52 rounds to the nearest integer. inverse = (1 / b)(1 + d) with |d| <= 2^-53, so x * inverse is within
// 2^22 * 2^-53 = 2^-31 of x / b and q within 1/2 + 2^-31. Then r = x - q * b is an integer, exact in the FMA, with
// |r| <= b / 2 + b * 2^-31 < b / 2 + 1 <= b: one addition of b makes it canonical. The low 32 bits of
// r + 1.5 * 2^52 are r in two's complement.
__device__ __forceinline__ uint32_t reduce_real(double x, const Limb& m) {
  constexpr double kRound = 6755399441055744.0;
  const double q = __fma_rn(x, m.inverse, kRound) - kRound;
  const int32_t r = __double2loint(__fma_rn(-q, m.real, x) + kRound);
  return static_cast<uint32_t>(r) + (r < 0 ? m.b : 0u);
}

}  // namespace mcfhe::cuda
