// One 32-bit word at a time; see words_avx512.h for what each function means. Serves every ring degree, also those too
// small for the vector versions.

constexpr int64_t kWords = 1;
using Vw = uint32_t;

inline Vw load_words(const uint32_t* p) { return *p; }
inline void store_words(uint32_t* p, Vw v) { *p = v; }
inline Vw set_word(uint32_t w) { return w; }
inline Vw add_words(Vw x, Vw y) { return x + y; }
inline Vw sub_words(Vw x, Vw y) { return x - y; }
inline Vw min_words(Vw x, Vw y) { return x < y ? x : y; }
inline Vw odd_words(Vw x) { return x; }

struct Factor {
  Vw w, quotient;
};
inline Factor set_factor(uint32_t w, uint32_t quotient) { return {w, quotient}; }
inline Factor load_factor(const uint32_t* w, const uint32_t* quotient, const uint32_t*) { return {*w, *quotient}; }
inline Vw mul_lazy(Vw x, const Factor& f, Vw q) { return mul_shoup_lazy(x, f.w, f.quotient, q); }
inline Vw shuffle_words(Vw a, Vw b, const uint32_t* index) { return *index == 0 ? a : b; }

using Wide = uint64_t;
inline Wide zero_wide() { return 0; }
inline Wide mul_add_wide(Wide acc, Vw x, Vw, Vw y) { return acc + static_cast<uint64_t>(x) * y; }
inline Wide fold_wide(Wide acc, uint32_t q) {
  const uint64_t bound = static_cast<uint64_t>(q) << 32;
  return acc >= bound ? acc - bound : acc;
}
inline Vw reduce_wide(Wide acc, Vw inverse, Vw q) {
  const uint32_t multiple = static_cast<uint32_t>(acc) * inverse;
  const Vw r = static_cast<uint32_t>(acc >> 32) - static_cast<uint32_t>((static_cast<uint64_t>(multiple) * q) >> 32);
  return min_words(r, r + q);
}

inline Vw narrow_words(const int64_t* p, Raw& bad, const ModV& m) {
  bad.v[0] |= static_cast<uint64_t>(*p) >= m.m.b ? -1 : 0;
  return static_cast<uint32_t>(*p);
}
inline void store_widened(int64_t* p, Vw v) { *p = v; }
