// AVX2 vectors of 32-bit words; see words_avx512.h for what each function means. Included after simd_avx2.h.

constexpr int64_t kWords = 8;
using Vw = __m256i;

inline Vw load_words(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_words(uint32_t* p, Vw v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Vw set_word(uint32_t w) { return _mm256_set1_epi32(static_cast<int32_t>(w)); }
inline Vw add_words(Vw x, Vw y) { return _mm256_add_epi32(x, y); }
inline Vw sub_words(Vw x, Vw y) { return _mm256_sub_epi32(x, y); }
inline Vw min_words(Vw x, Vw y) { return _mm256_min_epu32(x, y); }

inline Vw odd_words(Vw x) { return _mm256_srli_epi64(x, 32); }
inline Vw upper_halves(Vw even, Vw odd) { return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa); }

struct Factor {
  Vw w, quotient, quotient_odd;
};
inline Factor set_factor(uint32_t w, uint32_t quotient) {
  return {set_word(w), set_word(quotient), set_word(quotient)};
}
inline Factor load_factor(const uint32_t* w, const uint32_t* quotient, const uint32_t* index) {
  const Vw at = load_words(index);
  const Vw all = _mm256_permutevar8x32_epi32(load_words(quotient), at);
  return {_mm256_permutevar8x32_epi32(load_words(w), at), all, odd_words(all)};
}
inline Vw mul_lazy(Vw x, const Factor& f, Vw q) {
  const Vw even = _mm256_mul_epu32(x, f.quotient);
  const Vw odd = _mm256_mul_epu32(odd_words(x), f.quotient_odd);
  return _mm256_sub_epi32(_mm256_mullo_epi32(x, f.w), _mm256_mullo_epi32(upper_halves(even, odd), q));
}

// The permutation reads the lowest three bits of an index; the fourth, shifted to the sign, picks the operand.
inline Vw shuffle_words(Vw a, Vw b, const uint32_t* index) {
  const Vw at = load_words(index);
  return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(_mm256_permutevar8x32_epi32(a, at)),
                                              _mm256_castsi256_ps(_mm256_permutevar8x32_epi32(b, at)),
                                              _mm256_castsi256_ps(_mm256_slli_epi32(at, 28))));
}

struct Wide {
  __m256i even, odd;
};
inline Wide zero_wide() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Wide mul_add_wide(Wide acc, Vw x, Vw x_odd, Vw y) {
  return {_mm256_add_epi64(acc.even, _mm256_mul_epu32(x, y)),
          _mm256_add_epi64(acc.odd, _mm256_mul_epu32(x_odd, odd_words(y)))};
}
// With bound = 2^32 q < 2^63 the sign of acc - bound says whether acc was below it.
inline __m256i fold_half(__m256i acc, __m256i bound) {
  const __m256d d = _mm256_castsi256_pd(_mm256_sub_epi64(acc, bound));
  return _mm256_castpd_si256(_mm256_blendv_pd(d, _mm256_castsi256_pd(acc), d));
}
inline Wide fold_wide(Wide acc, uint32_t q) {
  const __m256i bound = _mm256_set1_epi64x(static_cast<int64_t>(static_cast<uint64_t>(q) << 32));
  return {fold_half(acc.even, bound), fold_half(acc.odd, bound)};
}
inline Vw reduce_wide(Wide acc, Vw inverse, Vw q) {
  const __m256i even = _mm256_mul_epu32(_mm256_mul_epu32(acc.even, inverse), q);
  const __m256i odd = _mm256_mul_epu32(_mm256_mul_epu32(acc.odd, inverse), q);
  const Vw r = _mm256_sub_epi32(upper_halves(acc.even, acc.odd), upper_halves(even, odd));
  return min_words(r, add_words(r, q));
}

inline Vw narrow_words(const int64_t* p, Raw& bad, const ModV& m) {
  const Raw low = load_raw(p);
  const Raw high = load_raw(p + 4);
  bad = mark_bad(mark_bad(bad, low, m), high, m);
  return _mm256_set_m128i(low_words(high), low_words(low));
}
inline void store_widened(int64_t* p, Vw v) {
  store_raw(p, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(v)));
  store_raw(p + 4, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(v, 1)));
}
