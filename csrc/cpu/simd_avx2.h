// AVX2 + FMA vectors of residues; see simd_avx512.h for the arithmetic. AVX2 has no conversion between int64 and
// double, so both directions add 2^52 (or 1.5 * 2^52 for signed values), where the mantissa is the integer.

constexpr int64_t kLanes = 4;
using Vr = __m256d;
using Raw = __m256i;

struct ModV {
  __m256d b, inverse, two32;
  __m256i top;
};

inline ModV make_modv(int64_t b) {
  return {_mm256_set1_pd(static_cast<double>(b)), _mm256_set1_pd(1.0 / static_cast<double>(b)),
          _mm256_set1_pd(static_cast<double>((int64_t{1} << 32) % b)), _mm256_set1_epi64x(b - 1)};
}

inline __m256i first(int64_t n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
inline Raw load_raw(const int64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline Raw load_raw(const int64_t* p, int64_t n) {
  return _mm256_maskload_epi64(reinterpret_cast<const long long*>(p), first(n));
}
inline void store_raw(int64_t* p, Raw v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline Raw zero_raw() { return _mm256_setzero_si256(); }
inline Raw add_raw(Raw x, Raw y) { return _mm256_add_epi64(x, y); }
inline Raw set_raw(int64_t x) { return _mm256_set1_epi64x(x); }
inline Raw multiply_raw(Raw x, Raw y) { return _mm256_mul_epu32(x, y); }
inline Raw add_mod_raw(Raw x, Raw y, Raw less) {
  return _mm256_min_epu32(_mm256_add_epi64(x, y), _mm256_add_epi64(x, less));
}
inline Raw mark_bad(Raw bad, Raw x, const ModV& m) {
  return _mm256_or_si256(bad, _mm256_or_si256(x, _mm256_sub_epi64(m.top, x)));
}
inline bool any_bad(Raw bad) { return _mm256_movemask_pd(_mm256_castsi256_pd(bad)) != 0; }

// |x| < 2^51 -> double.
inline Vr to_residue(Raw x) {
  const __m256d magic = _mm256_set1_pd(6755399441055744.0);  // 1.5 * 2^52
  return _mm256_sub_pd(_mm256_castsi256_pd(_mm256_add_epi64(x, _mm256_castpd_si256(magic))), magic);
}
// 0 <= v < 2^51, an integer -> int64.
inline Raw to_raw(Vr v) {
  const __m256d magic = _mm256_set1_pd(4503599627370496.0);  // 2^52
  return _mm256_xor_si256(_mm256_castpd_si256(_mm256_add_pd(v, magic)), _mm256_castpd_si256(magic));
}
inline Vr set_residue(int64_t x) { return _mm256_set1_pd(static_cast<double>(x)); }
inline void store(int64_t* p, Vr v) { store_raw(p, to_raw(v)); }
inline void store(int64_t* p, Vr v, int64_t n) {
  _mm256_maskstore_epi64(reinterpret_cast<long long*>(p), first(n), to_raw(v));
}

inline Vr lift(Vr r, const ModV& m) {
  return _mm256_add_pd(r, _mm256_and_pd(m.b, _mm256_cmp_pd(r, _mm256_setzero_pd(), _CMP_LT_OQ)));
}
inline Vr nearest(Vr x) { return _mm256_round_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// |x| <= 2^53, |x / b| < 2^40.
inline Vr reduce_lazy(Vr x, const ModV& m) { return _mm256_fnmadd_pd(nearest(_mm256_mul_pd(x, m.inverse)), m.b, x); }
// x * y + c for an integer |c| < 2^32; |x * y| < 2^71, |x * y / b| < 2^40.
inline Vr mul_add_lazy(Vr x, Vr y, Vr c, const ModV& m) {
  const Vr h = _mm256_mul_pd(x, y);
  const Vr l = _mm256_add_pd(_mm256_fmsub_pd(x, y, h), c);
  const Vr q = nearest(_mm256_mul_pd(_mm256_add_pd(h, l), m.inverse));
  return _mm256_add_pd(_mm256_fnmadd_pd(q, m.b, h), l);
}
inline Vr add_lazy(Vr x, Vr y) { return _mm256_add_pd(x, y); }
// Any unsigned 64-bit sum.
inline Vr reduce_sum(Raw x, const ModV& m) {
  const Vr high = to_residue(_mm256_srli_epi64(x, 32));
  const Vr low = to_residue(_mm256_and_si256(x, _mm256_set1_epi64x(0xffffffff)));
  return reduce_lazy(_mm256_add_pd(mul_add_lazy(high, m.two32, _mm256_setzero_pd(), m), low), m);
}
// Canonical x, y -> canonical sum.
inline Vr add_mod(Vr x, Vr y, const ModV& m) { return lift(_mm256_sub_pd(_mm256_add_pd(x, y), m.b), m); }

constexpr bool kHasInt16 = true;
struct Int16Path {
  static constexpr int64_t kColumns = 8;
  static constexpr int64_t kPlanes = 2;
  using Element = int32_t;
  using Vector = __m256i;
  using Weight = __m256i;
  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector load(const Element* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Weight weight(const Element* w) { return _mm256_set1_epi32(*w); }
  static Vector multiply_add(Vector acc, Vector x, Weight w) { return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w)); }
  static Vr finish(const Vector (&acc)[2], int part, Vr c, const ModV& m) {
    const __m128i low = part == 0 ? _mm256_castsi256_si128(acc[0]) : _mm256_extracti128_si256(acc[0], 1);
    const __m128i high = part == 0 ? _mm256_castsi256_si128(acc[1]) : _mm256_extracti128_si256(acc[1], 1);
    return reduce_lazy(
        _mm256_add_pd(_mm256_fmadd_pd(_mm256_cvtepi32_pd(high), _mm256_set1_pd(65536.0), _mm256_cvtepi32_pd(low)), c),
        m);
  }
};

inline __m128i low_words(Raw x) {
  return _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)));
}
inline void narrow(int32_t* to, Raw x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), low_words(x)); }
inline void narrow(int32_t* to, Raw x, int64_t n) {
  const __m128i mask = _mm_cmpgt_epi32(_mm_set1_epi32(static_cast<int32_t>(n)), _mm_setr_epi32(0, 1, 2, 3));
  _mm_maskstore_epi32(to, mask, low_words(x));
}
inline void pack_halves(const int32_t* a, const int32_t* b, int32_t* low, int32_t* high) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i y = b == nullptr ? _mm256_setzero_si256() : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  const __m256i mask = _mm256_set1_epi32(0xffff);
  const __m256i round = _mm256_set1_epi32(0x8000);
  const __m256i xh = _mm256_srli_epi32(_mm256_add_epi32(x, round), 16);
  const __m256i yh = _mm256_add_epi32(y, round);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(low),
                      _mm256_or_si256(_mm256_and_si256(x, mask), _mm256_slli_epi32(y, 16)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), _mm256_or_si256(xh, _mm256_andnot_si256(mask, yh)));
}

constexpr bool kHasDouble = true;
struct DoublePath {
  static constexpr int64_t kColumns = 4;
  using Element = double;
  static constexpr int64_t kPlanes = 1;
  using Vector = __m256d;
  using Weight = __m256d;
  static Vector zero() { return _mm256_setzero_pd(); }
  static Vector load(const Element* p) { return _mm256_loadu_pd(p); }
  static Weight weight(const Element* w) { return _mm256_broadcast_sd(w); }
  static Vector multiply_add(Vector acc, Vector x, Weight w) { return _mm256_fmadd_pd(x, w, acc); }
  static Vr finish(const Vector (&acc)[1], int, Vr c, const ModV& m) {
    return reduce_lazy(_mm256_add_pd(acc[0], c), m);
  }
};
inline void widen(double* to, Raw x) { _mm256_storeu_pd(to, to_residue(x)); }
inline void widen(double* to, Raw x, int64_t n) { _mm256_maskstore_pd(to, first(n), to_residue(x)); }

struct Int64Path {
  static constexpr int64_t kColumns = 4;
  using Element = int64_t;
  static constexpr int64_t kPlanes = 1;
  using Vector = __m256i;
  using Weight = __m256i;
  static Vector zero() { return _mm256_setzero_si256(); }
  static Vector load(const Element* p) { return load_raw(p); }
  static Weight weight(const Element* w) { return _mm256_set1_epi64x(*w); }
  static Vector multiply_add(Vector acc, Vector x, Weight w) { return _mm256_add_epi64(acc, _mm256_mul_epi32(x, w)); }
  static Vr finish(const Vector (&acc)[1], int, Vr c, const ModV& m) {
    const __m256i odd = _mm256_setr_epi32(1, 3, 5, 7, 1, 3, 5, 7);
    const Vr high = _mm256_cvtepi32_pd(_mm256_castsi256_si128(_mm256_permutevar8x32_epi32(acc[0], odd)));
    const Vr low = to_residue(_mm256_and_si256(acc[0], _mm256_set1_epi64x(0xffffffff)));
    return reduce_lazy(_mm256_add_pd(mul_add_lazy(high, m.two32, c, m), low), m);
  }
  static Vector restart(Vr canonical) { return to_raw(canonical); }
};
inline void widen(int64_t* to, Raw x) { store_raw(to, x); }
inline void widen(int64_t* to, Raw x, int64_t n) {
  _mm256_maskstore_epi64(reinterpret_cast<long long*>(to), first(n), x);
}

constexpr int64_t kTile = 4;
constexpr int64_t kVectors = 1;
