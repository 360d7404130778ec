// AVX-512 (F, BW, DQ, VL, VNNI) vectors of residues. Included once, inside the instruction set's own namespace, under
// its target pragma; nothing here is a template of the standard library, so no code leaks to other translation units.
//
// A vector of residues `Vr` holds kLanes doubles, each an exact integer. Modular arithmetic in doubles:
// h = x * y rounded, l = fma(x, y, -h) the exact rest, q = round(h / b), r = fma(-q, b, h) + l. With q < 2^40 the
// quotient is within 1/2 + 2^-12 of exact, so r lies in (-b, b) and one conditional addition makes it canonical
// (van der Hoeven, Lecerf, Quintin, "Modular SIMD arithmetic in Mathemagix", doi 10.1145/2876503).

constexpr int64_t kLanes = 8;
using Vr = __m512d;
using Raw = __m512i;  // kLanes int64 as they lie in memory

struct ModV {
  __m512d b, inverse, two32;  // two32 = 2^32 mod b
  __m512i top;                // b - 1
};

inline ModV make_modv(int64_t b) {
  return {_mm512_set1_pd(static_cast<double>(b)), _mm512_set1_pd(1.0 / static_cast<double>(b)),
          _mm512_set1_pd(static_cast<double>((int64_t{1} << 32) % b)), _mm512_set1_epi64(b - 1)};
}

inline __mmask8 first(int64_t n) { return n >= kLanes ? 0xff : static_cast<__mmask8>((1u << n) - 1); }
inline Raw load_raw(const int64_t* p) { return _mm512_loadu_si512(p); }
inline Raw load_raw(const int64_t* p, int64_t n) { return _mm512_maskz_loadu_epi64(first(n), p); }
inline void store_raw(int64_t* p, Raw v) { _mm512_storeu_si512(p, v); }
inline Raw zero_raw() { return _mm512_setzero_si512(); }
inline Raw add_raw(Raw x, Raw y) { return _mm512_add_epi64(x, y); }
inline Raw set_raw(int64_t x) { return _mm512_set1_epi64(x); }
// Of the lower 32 bits, unsigned, as 64.
inline Raw multiply_raw(Raw x, Raw y) { return _mm512_mul_epu32(x, y); }
// Canonical x, y -> canonical sum; less is y - b. Upper halves are 0 or all ones, so that the least of the halves is
// the right one.
inline Raw add_mod_raw(Raw x, Raw y, Raw less) {
  return _mm512_min_epu32(_mm512_add_epi64(x, y), _mm512_add_epi64(x, less));
}
// Collects in the sign bits whether any x was outside 0 <= x < b.
inline Raw mark_bad(Raw bad, Raw x, const ModV& m) {
  return _mm512_or_si512(bad, _mm512_or_si512(x, _mm512_sub_epi64(m.top, x)));
}
inline bool any_bad(Raw bad) { return _mm512_movepi64_mask(bad) != 0; }

inline Vr to_residue(Raw x) { return _mm512_cvtepi64_pd(x); }  // |x| <= 2^53
inline Vr set_residue(int64_t x) { return _mm512_set1_pd(static_cast<double>(x)); }
inline void store(int64_t* p, Vr v) { _mm512_storeu_si512(p, _mm512_cvttpd_epi64(v)); }
inline void store(int64_t* p, Vr v, int64_t n) { _mm512_mask_storeu_epi64(p, first(n), _mm512_cvttpd_epi64(v)); }

// r in (-b, b) -> canonical.
inline Vr lift(Vr r, const ModV& m) {
  return _mm512_mask_add_pd(r, _mm512_cmp_pd_mask(r, _mm512_setzero_pd(), _CMP_LT_OQ), r, m.b);
}
inline Vr nearest(Vr x) { return _mm512_roundscale_pd(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// `_lazy` results lie in (-b, b) and are congruent to what they stand for; lift makes them canonical. Inputs may be
// lazy. |x| <= 2^53, |x / b| < 2^40.
inline Vr reduce_lazy(Vr x, const ModV& m) { return _mm512_fnmadd_pd(nearest(_mm512_mul_pd(x, m.inverse)), m.b, x); }
// x * y + c for an integer |c| < 2^32; |x * y| < 2^71, |x * y / b| < 2^40.
inline Vr mul_add_lazy(Vr x, Vr y, Vr c, const ModV& m) {
  const Vr h = _mm512_mul_pd(x, y);
  const Vr l = _mm512_add_pd(_mm512_fmsub_pd(x, y, h), c);
  const Vr q = nearest(_mm512_mul_pd(_mm512_add_pd(h, l), m.inverse));
  return _mm512_add_pd(_mm512_fnmadd_pd(q, m.b, h), l);
}
inline Vr add_lazy(Vr x, Vr y) { return _mm512_add_pd(x, y); }
// Any unsigned 64-bit sum.
inline Vr reduce_sum(Raw x, const ModV& m) {
  const Vr high = _mm512_cvtepi64_pd(_mm512_srli_epi64(x, 32));
  const Vr low = _mm512_cvtepi64_pd(_mm512_and_si512(x, _mm512_set1_epi64(0xffffffff)));
  return reduce_lazy(_mm512_add_pd(mul_add_lazy(high, m.two32, _mm512_setzero_pd(), m), low), m);
}
// Canonical x, y -> canonical sum.
inline Vr add_mod(Vr x, Vr y, const ModV& m) { return lift(_mm512_sub_pd(_mm512_add_pd(x, y), m.b), m); }

// --- 16-bit halves -----------------------------------------------------------------------------------------------

constexpr bool kHasInt16 = true;
struct Int16Path {
  static constexpr int64_t kColumns = 16;
  static constexpr int64_t kPlanes = 2;  // sums of the low halves, sums of the high halves
  using Element = int32_t;               // two signed 16-bit factors
  using Vector = __m512i;
  using Weight = __m512i;
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load(const Element* p) { return _mm512_loadu_si512(p); }
  static Weight weight(const Element* w) { return _mm512_set1_epi32(*w); }
  static Vector multiply_add(Vector acc, Vector x, Weight w) { return _mm512_dpwssd_epi32(acc, x, w); }
  // c + low + 2^16 high of the columns of one residue vector, 0 <= c < b. Lazy.
  static Vr finish(const Vector (&acc)[2], int part, Vr c, const ModV& m) {
    const __m256i low = part == 0 ? _mm512_castsi512_si256(acc[0]) : _mm512_extracti64x4_epi64(acc[0], 1);
    const __m256i high = part == 0 ? _mm512_castsi512_si256(acc[1]) : _mm512_extracti64x4_epi64(acc[1], 1);
    return reduce_lazy(
        _mm512_add_pd(_mm512_fmadd_pd(_mm512_cvtepi32_pd(high), _mm512_set1_pd(65536.0), _mm512_cvtepi32_pd(low)), c),
        m);
  }
};

// Residues of kLanes columns to 32 bits.
inline void narrow(int32_t* to, Raw x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(x));
}
inline void narrow(int32_t* to, Raw x, int64_t n) { _mm512_mask_cvtepi64_storeu_epi32(to, first(n), x); }
// Packs the signed low halves of a and b, and their upper halves, into 16-bit pairs; kColumns entries.
inline void pack_halves(const int32_t* a, const int32_t* b, int32_t* low, int32_t* high) {
  const __m512i x = _mm512_loadu_si512(a);
  const __m512i y = b == nullptr ? _mm512_setzero_si512() : _mm512_loadu_si512(b);
  const __m512i mask = _mm512_set1_epi32(0xffff);
  const __m512i round = _mm512_set1_epi32(0x8000);
  const __m512i xh = _mm512_srli_epi32(_mm512_add_epi32(x, round), 16);
  const __m512i yh = _mm512_add_epi32(y, round);
  _mm512_storeu_si512(low, _mm512_or_si512(_mm512_and_si512(x, mask), _mm512_slli_epi32(y, 16)));
  _mm512_storeu_si512(high, _mm512_or_si512(xh, _mm512_andnot_si512(mask, yh)));
}

// --- doubles -----------------------------------------------------------------------------------------------------

constexpr bool kHasDouble = true;
struct DoublePath {
  static constexpr int64_t kColumns = 8;
  using Element = double;
  static constexpr int64_t kPlanes = 1;
  using Vector = __m512d;
  using Weight = __m512d;
  static Vector zero() { return _mm512_setzero_pd(); }
  static Vector load(const Element* p) { return _mm512_loadu_pd(p); }
  static Weight weight(const Element* w) { return _mm512_set1_pd(*w); }
  static Vector multiply_add(Vector acc, Vector x, Weight w) { return _mm512_fmadd_pd(x, w, acc); }
  static Vr finish(const Vector (&acc)[1], int, Vr c, const ModV& m) {
    return reduce_lazy(_mm512_add_pd(acc[0], c), m);
  }
};
inline void widen(double* to, Raw x) { _mm512_storeu_pd(to, to_residue(x)); }
inline void widen(double* to, Raw x, int64_t n) { _mm512_mask_storeu_pd(to, first(n), to_residue(x)); }

// --- 64-bit integers ---------------------------------------------------------------------------------------------

struct Int64Path {
  static constexpr int64_t kColumns = 8;
  using Element = int64_t;
  static constexpr int64_t kPlanes = 1;
  using Vector = __m512i;
  using Weight = __m512i;
  static Vector zero() { return _mm512_setzero_si512(); }
  static Vector load(const Element* p) { return _mm512_loadu_si512(p); }
  static Weight weight(const Element* w) { return _mm512_set1_epi64(*w); }
  static Vector multiply_add(Vector acc, Vector x, Weight w) { return _mm512_add_epi64(acc, _mm512_mul_epi32(x, w)); }
  // Any 64-bit sum: 2^32 * (upper half, signed) + (lower half, unsigned).
  static Vr finish(const Vector (&acc)[1], int, Vr c, const ModV& m) {
    const Vr high = _mm512_cvtepi64_pd(_mm512_srai_epi64(acc[0], 32));
    const Vr low = _mm512_cvtepi64_pd(_mm512_and_si512(acc[0], _mm512_set1_epi64(0xffffffff)));
    return reduce_lazy(_mm512_add_pd(mul_add_lazy(high, m.two32, c, m), low), m);
  }
  static Vector restart(Vr canonical) { return _mm512_cvttpd_epi64(canonical); }
};
inline void widen(int64_t* to, Raw x) { store_raw(to, x); }
inline void widen(int64_t* to, Raw x, int64_t n) { _mm512_mask_storeu_epi64(to, first(n), x); }

constexpr int64_t kTile = 4;     // output channels of the microkernel
constexpr int64_t kVectors = 2;  // column vectors of the microkernel
