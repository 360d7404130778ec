// Scalar arithmetic modulo one limb, for host and device. Torch-free.
//
// Names: b is a modulus, 2 <= b < 2^31. A residue is canonical when 0 <= r < b. Each function states the range
// it needs and the range it gives; nothing here checks.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define MCFHE_HD __host__ __device__ __forceinline__
#else
#define MCFHE_HD inline
#endif

namespace mcfhe {

// Upper half of the 128-bit product.
MCFHE_HD uint64_t mulhi_u64(uint64_t x, uint64_t y) {
#if defined(__CUDA_ARCH__) || defined(MCFHE_SIMT)
  return __umul64hi(x, y);
#else
  return static_cast<uint64_t>((static_cast<unsigned __int128>(x) * y) >> 64);
#endif
}

// One limb with the constants its reductions need.
struct Modulus {
  uint64_t b;   // 2 <= b < 2^31
  uint64_t mu;  // floor((2^64 - 1) / b)
};

// floor((2^64 - 1) / b) equals floor(2^64 / b) unless b is a power of two, where it is one less; both satisfy the
// error bound that barrett_u64 needs.
MCFHE_HD Modulus make_modulus(int64_t b) {
  Modulus m;
  m.b = static_cast<uint64_t>(b);
  m.mu = ~uint64_t{0} / m.b;
  return m;
}

// x mod b for any 64-bit x. q = floor(x * mu / 2^64) is at most 1 below floor(x / b) because
// x / b - x * mu / 2^64 = x * (2^64 - b * mu) / (b * 2^64) <= x * b / (b * 2^64) < 1. Result canonical.
MCFHE_HD uint64_t barrett_u64(uint64_t x, Modulus m) {
  const uint64_t r = x - mulhi_u64(x, m.mu) * m.b;
  return r >= m.b ? r - m.b : r;
}

// x mod b, canonical, for any int64 x. For x < 0: x = -(u + 1) with u = ~x >= 0, so x mod b = b - 1 - (u mod b).
MCFHE_HD uint64_t reduce_i64(int64_t x, Modulus m) {
  const uint64_t sign = static_cast<uint64_t>(x >> 63);
  const uint64_t r = barrett_u64(static_cast<uint64_t>(x) ^ sign, m);
  return sign != 0 ? m.b - 1 - r : r;
}

// Canonical x, y -> canonical sum.
MCFHE_HD uint64_t add_mod(uint64_t x, uint64_t y, Modulus m) {
  const uint64_t s = x + y;
  return s >= m.b ? s - m.b : s;
}

// Canonical x, y -> canonical product; the product stays below 2^62.
MCFHE_HD uint64_t mul_mod(uint64_t x, uint64_t y, Modulus m) { return barrett_u64(x * y, m); }

}  // namespace mcfhe
