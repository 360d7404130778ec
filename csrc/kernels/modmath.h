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

// --- 32-bit words: number-theoretic transforms -------------------------------------------------------------------

// floor(w * 2^32 / q) for w < q: the Shoup quotient of a fixed factor.
MCFHE_HD uint32_t shoup_quotient(uint64_t w, uint64_t q) { return static_cast<uint32_t>((w << 32) / q); }

// x * w mod q for any 32-bit x, w < q < 2^31 and its Shoup quotient. Result in [0, 2q): x * w / q - x * quotient / 2^32
// lies in [0, x / 2^32], so the quotient taken is at most 1 too small; 2q < 2^32, so 32-bit wrap-around is harmless.
MCFHE_HD uint32_t mul_shoup_lazy(uint32_t x, uint32_t w, uint32_t quotient, uint32_t q) {
  const uint32_t multiple = static_cast<uint32_t>((static_cast<uint64_t>(x) * quotient) >> 32);
  return x * w - multiple * q;
}

// x in [0, 2q) -> canonical.
MCFHE_HD uint32_t lift_word(uint32_t x, uint32_t q) { return x >= q ? x - q : x; }

// The same as mul_shoup_lazy, canonical.
MCFHE_HD uint32_t mul_shoup(uint32_t x, uint32_t w, uint32_t quotient, uint32_t q) {
  return lift_word(mul_shoup_lazy(x, w, quotient, q), q);
}

// Canonical x, y -> canonical sum and difference, q < 2^31.
MCFHE_HD uint32_t add_word(uint32_t x, uint32_t y, uint32_t q) { return lift_word(x + y, q); }
MCFHE_HD uint32_t sub_word(uint32_t x, uint32_t y, uint32_t q) { return x >= y ? x - y : x + q - y; }

// x^-1 mod q for 0 < x < q < 2^31, or 0 where there is none (extended Euclid).
MCFHE_HD uint32_t inverse_word(uint32_t x, uint32_t q) {
  int64_t r0 = q, r1 = x, t0 = 0, t1 = 1;
  while (r1 != 0) {
    const int64_t k = r0 / r1;
    const int64_t r = r0 - k * r1, t = t0 - k * t1;
    r0 = r1, r1 = r, t0 = t1, t1 = t;
  }
  return r0 != 1 ? 0 : static_cast<uint32_t>(t0 < 0 ? t0 + q : t0);
}

}  // namespace mcfhe
