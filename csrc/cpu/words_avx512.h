// AVX-512 vectors of 32-bit words, for transforms modulo primes q < 2^31. Included after simd_avx512.h.

constexpr int64_t kWords = 16;
using Vw = __m512i;

inline Vw load_words(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline void store_words(uint32_t* p, Vw v) { _mm512_storeu_si512(p, v); }
inline Vw set_word(uint32_t w) { return _mm512_set1_epi32(static_cast<int32_t>(w)); }
inline Vw add_words(Vw x, Vw y) { return _mm512_add_epi32(x, y); }
inline Vw sub_words(Vw x, Vw y) { return _mm512_sub_epi32(x, y); }
inline Vw min_words(Vw x, Vw y) { return _mm512_min_epu32(x, y); }

// The odd words moved to where widening products read.
inline Vw odd_words(Vw x) { return _mm512_srli_epi64(x, 32); }
// Upper halves of products of even and of odd words, as one vector.
inline Vw upper_halves(Vw even, Vw odd) {
  return _mm512_mask_shuffle_epi32(odd, 0x5555, even, static_cast<_MM_PERM_ENUM>(0xf5));
}

// A fixed factor w < q with its Shoup quotient.
struct Factor {
  Vw w, quotient, quotient_odd;
};
inline Factor set_factor(uint32_t w, uint32_t quotient) {
  return {set_word(w), set_word(quotient), set_word(quotient)};
}
// Words kWords at `index` into the tables w and quotient.
inline Factor load_factor(const uint32_t* w, const uint32_t* quotient, const uint32_t* index) {
  const Vw at = load_words(index);
  const Vw all = _mm512_permutexvar_epi32(at, load_words(quotient));
  return {_mm512_permutexvar_epi32(at, load_words(w)), all, odd_words(all)};
}
// x * w mod q in [0, 2q) for any words x (mul_shoup_lazy in modmath.h).
inline Vw mul_lazy(Vw x, const Factor& f, Vw q) {
  const Vw even = _mm512_mul_epu32(x, f.quotient);
  const Vw odd = _mm512_mul_epu32(odd_words(x), f.quotient_odd);
  return _mm512_sub_epi32(_mm512_mullo_epi32(x, f.w), _mm512_mullo_epi32(upper_halves(even, odd), q));
}

// Word i of the result is word index[i] of the 2 * kWords words (a, b).
inline Vw shuffle_words(Vw a, Vw b, const uint32_t* index) {
  return _mm512_permutex2var_epi32(a, load_words(index), b);
}

// Sums of products, even and odd words apart.
struct Wide {
  __m512i even, odd;
};
inline Wide zero_wide() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
// acc + x * y; x_odd = odd_words(x).
inline Wide mul_add_wide(Wide acc, Vw x, Vw x_odd, Vw y) {
  return {_mm512_add_epi64(acc.even, _mm512_mul_epu32(x, y)),
          _mm512_add_epi64(acc.odd, _mm512_mul_epu32(x_odd, odd_words(y)))};
}
// Entries of acc in [0, 2 * 2^32 q) -> [0, 2^32 q).
inline Wide fold_wide(Wide acc, uint32_t q) {
  const __m512i bound = _mm512_set1_epi64(static_cast<int64_t>(static_cast<uint64_t>(q) << 32));
  return {_mm512_min_epu64(acc.even, _mm512_sub_epi64(acc.even, bound)),
          _mm512_min_epu64(acc.odd, _mm512_sub_epi64(acc.odd, bound))};
}
// Montgomery's acc * 2^-32 mod q, canonical, for entries in [0, 2^32 q); inverse = q^-1 mod 2^32.
inline Vw reduce_wide(Wide acc, Vw inverse, Vw q) {
  const __m512i even = _mm512_mul_epu32(_mm512_mul_epu32(acc.even, inverse), q);
  const __m512i odd = _mm512_mul_epu32(_mm512_mul_epu32(acc.odd, inverse), q);
  const Vw r = _mm512_sub_epi32(upper_halves(acc.even, acc.odd), upper_halves(even, odd));
  return min_words(r, add_words(r, q));
}

// kWords residues as words; `bad` collects in its sign bits whether one was outside 0 <= x < q.
inline Vw narrow_words(const int64_t* p, Raw& bad, const ModV& m) {
  const Raw low = load_raw(p);
  const Raw high = load_raw(p + 8);
  bad = mark_bad(mark_bad(bad, low, m), high, m);
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(low)), _mm512_cvtepi64_epi32(high), 1);
}
inline void store_widened(int64_t* p, Vw v) {
  store_raw(p, _mm512_cvtepu32_epi64(_mm512_castsi512_si256(v)));
  store_raw(p + 8, _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(v, 1)));
}
