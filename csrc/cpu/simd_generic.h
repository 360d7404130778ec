// Residue vectors in plain C++, for processors without the instruction sets above and for checking them. Reductions
// are Barrett's on 64-bit integers, since a software fma would cost far more than an integer product.

constexpr int64_t kLanes = 4;
struct Vr {
  uint64_t v[kLanes];
};
struct Raw {
  int64_t v[kLanes];
};

struct ModV {
  Modulus m;
};

inline ModV make_modv(int64_t b) { return {make_modulus(b)}; }

inline Raw load_raw(const int64_t* p) {
  Raw r;
  for (int64_t i = 0; i < kLanes; ++i) r.v[i] = p[i];
  return r;
}
inline Raw load_raw(const int64_t* p, int64_t n) {
  Raw r{};
  for (int64_t i = 0; i < kLanes && i < n; ++i) r.v[i] = p[i];
  return r;
}
inline Raw zero_raw() { return Raw{}; }
// Sums may be unsigned.
inline Raw add_raw(Raw x, Raw y) {
  for (int64_t i = 0; i < kLanes; ++i) {
    x.v[i] = static_cast<int64_t>(static_cast<uint64_t>(x.v[i]) + static_cast<uint64_t>(y.v[i]));
  }
  return x;
}
inline Raw set_raw(int64_t x) {
  Raw r;
  for (int64_t i = 0; i < kLanes; ++i) r.v[i] = x;
  return r;
}
// Non-negative x and y below 2^32; an unsigned product.
inline Raw multiply_raw(Raw x, Raw y) {
  for (int64_t i = 0; i < kLanes; ++i) {
    x.v[i] = static_cast<int64_t>(static_cast<uint64_t>(x.v[i]) * static_cast<uint64_t>(y.v[i]));
  }
  return x;
}
// Canonical x, y -> canonical sum; less is y - b. Unsigned, since x may be anything where the caller finds it bad.
inline Raw add_mod_raw(Raw x, Raw y, Raw less) {
  const Raw sum = add_raw(x, less), unreduced = add_raw(x, y);
  for (int64_t i = 0; i < kLanes; ++i) x.v[i] = sum.v[i] >= 0 ? sum.v[i] : unreduced.v[i];
  return x;
}
inline Raw mark_bad(Raw bad, Raw x, const ModV& m) {
  for (int64_t i = 0; i < kLanes; ++i) bad.v[i] |= static_cast<uint64_t>(x.v[i]) >= m.m.b ? -1 : 0;
  return bad;
}
inline bool any_bad(Raw bad) {
  int64_t any = 0;
  for (int64_t i = 0; i < kLanes; ++i) any |= bad.v[i];
  return any < 0;
}

// Any non-negative 64-bit integer; what multiplies or reduces it takes care of the rest.
inline Vr to_residue(Raw x) {
  Vr r;
  for (int64_t i = 0; i < kLanes; ++i) r.v[i] = static_cast<uint64_t>(x.v[i]);
  return r;
}
inline Vr set_residue(int64_t x) {
  Vr r;
  for (int64_t i = 0; i < kLanes; ++i) r.v[i] = static_cast<uint64_t>(x);
  return r;
}
inline void store(int64_t* p, Vr v) {
  for (int64_t i = 0; i < kLanes; ++i) p[i] = static_cast<int64_t>(v.v[i]);
}
inline void store(int64_t* p, Vr v, int64_t n) {
  for (int64_t i = 0; i < kLanes && i < n; ++i) p[i] = static_cast<int64_t>(v.v[i]);
}

// Here lazy results are canonical already, and so must inputs be where the vector versions take lazy ones.
inline Vr reduce_lazy(Vr x, const ModV& m) {
  for (int64_t i = 0; i < kLanes; ++i) x.v[i] = barrett_u64(x.v[i], m.m);
  return x;
}
// Any unsigned 64-bit sum.
inline Vr reduce_sum(Raw x, const ModV& m) { return reduce_lazy(to_residue(x), m); }
// x * y + c < 2^64.
inline Vr mul_add_lazy(Vr x, Vr y, Vr c, const ModV& m) {
  for (int64_t i = 0; i < kLanes; ++i) x.v[i] = barrett_u64(x.v[i] * y.v[i] + c.v[i], m.m);
  return x;
}
inline Vr add_lazy(Vr x, Vr y) {
  for (int64_t i = 0; i < kLanes; ++i) x.v[i] += y.v[i];
  return x;
}
inline Vr lift(Vr x, const ModV& m) { return reduce_lazy(x, m); }
inline Vr add_mod(Vr x, Vr y, const ModV& m) {
  for (int64_t i = 0; i < kLanes; ++i) x.v[i] = mcfhe::add_mod(x.v[i], y.v[i], m.m);
  return x;
}

constexpr bool kHasInt16 = false;
constexpr bool kHasDouble = false;

struct Int64Path {
  static constexpr int64_t kColumns = 4;
  using Element = int64_t;
  static constexpr int64_t kPlanes = 1;
  using Vector = Raw;
  using Weight = int64_t;
  static Vector zero() { return Raw{}; }
  static Vector load(const Element* p) { return load_raw(p); }
  static Weight weight(const Element* w) { return *w; }
  // Columns past the end of a row hold anything, so their sums may wrap: unsigned arithmetic.
  static Vector multiply_add(Vector acc, Vector x, Weight w) {
    for (int64_t i = 0; i < kColumns; ++i) {
      acc.v[i] = static_cast<int64_t>(static_cast<uint64_t>(acc.v[i]) +
                                      static_cast<uint64_t>(x.v[i]) * static_cast<uint64_t>(w));
    }
    return acc;
  }
  static Vr finish(const Vector (&acc)[1], int, Vr c, const ModV& m) {
    Vr r;
    for (int64_t i = 0; i < kLanes; ++i) r.v[i] = mcfhe::add_mod(reduce_i64(acc[0].v[i], m.m), c.v[i], m.m);
    return r;
  }
  static Vector restart(Vr canonical) {
    Raw r;
    for (int64_t i = 0; i < kLanes; ++i) r.v[i] = static_cast<int64_t>(canonical.v[i]);
    return r;
  }
};
// Never planned (kHasInt16, kHasDouble), but their names must mean something.
using Int16Path = Int64Path;
using DoublePath = Int64Path;
inline void widen(int64_t* to, Raw x) {
  for (int64_t i = 0; i < kLanes; ++i) to[i] = x.v[i];
}
inline void widen(int64_t* to, Raw x, int64_t n) {
  for (int64_t i = 0; i < kLanes && i < n; ++i) to[i] = x.v[i];
}

constexpr int64_t kTile = 2;
constexpr int64_t kVectors = 1;
