// The negacyclic number-theoretic transform of one polynomial modulo one prime, for one instruction set.
//
// forward: out[i] = x(psi^(2 bitrev(i) + 1)), Cooley-Tukey, natural order in, bit-reversed out; inverse undoes it by
// Gentleman-Sande. Roots and order are SEAL's (Longa, Naehrig, "Speeding up the number theoretic transform for faster
// ideal lattice-based cryptography", doi 10.1007/978-3-319-48965-0_8); lazy ranges are Harvey's ("Faster arithmetic for
// number-theoretic transforms", doi 10.1016/j.jsc.2013.09.002).
//
// Ranges of words between stages. Small primes, q < 2^30: forward [0, 4q), inverse [0, 2q). Other primes, q < 2^31,
// where 4q does not fit a word: canonical.
//
// A transform is one pass of two stages over all of it, then its four quarters one after the other, so that each
// stays in the first-level cache: passes of two stages, and the last log2(2 kWords) stages within two vectors.
// Needs n >= 8 kWords.

struct Ring {
  uint32_t q;
  int64_t n;
  const uint32_t *roots, *quotients, *inverse_roots, *inverse_quotients;
};

inline Ring ring_of(const RingTables& t, int64_t limb) {
  const uint32_t* rows = t.tables + limb * 4 * t.n;
  return {static_cast<uint32_t>(t.moduli[limb]), t.n, rows, rows + t.n, rows + 2 * t.n, rows + 3 * t.n};
}

inline bool is_small(uint32_t q) { return q < uint32_t{1} << 30; }

struct ModW {
  Vw q, q2;
};
inline ModW make_modw(uint32_t q) { return {set_word(q), set_word(2 * q)}; }

// x in [0, 2 bound) -> [0, bound): below the bound the difference wraps to a larger word.
inline Vw drop(Vw x, Vw bound) { return min_words(x, sub_words(x, bound)); }
inline Factor root_factor(const Ring& r, int64_t i) { return set_factor(r.roots[i], r.quotients[i]); }
inline Factor inverse_factor(const Ring& r, int64_t i) {
  return set_factor(r.inverse_roots[i], r.inverse_quotients[i]);
}

// (u, v) -> (u + w v, u - w v).
template <bool kSmall>
inline void forward_butterfly(Vw& u, Vw& v, const Factor& w, const ModW& m) {
  if constexpr (kSmall) {
    const Vw x = drop(u, m.q2);
    const Vw y = mul_lazy(v, w, m.q);
    u = add_words(x, y);
    v = add_words(sub_words(x, y), m.q2);
  } else {
    const Vw y = drop(mul_lazy(v, w, m.q), m.q);
    const Vw difference = sub_words(u, y);
    u = drop(add_words(u, y), m.q);
    v = min_words(difference, add_words(difference, m.q));
  }
}

// (u, v) -> (u + v, (u - v) w).
template <bool kSmall>
inline void inverse_butterfly(Vw& u, Vw& v, const Factor& w, const ModW& m) {
  const Vw difference = add_words(sub_words(u, v), kSmall ? m.q2 : m.q);
  u = drop(add_words(u, v), kSmall ? m.q2 : m.q);
  v = mul_lazy(difference, w, m.q);
  if constexpr (!kSmall) v = drop(v, m.q);
}

// (u, v) -> ((u + v) s, (u - v) w), canonical: the last stage with the factor n^-1.
template <bool kSmall>
inline void last_inverse_butterfly(Vw& u, Vw& v, const Factor& s, const Factor& w, const ModW& m) {
  const Vw difference = add_words(sub_words(u, v), kSmall ? m.q2 : m.q);
  u = drop(mul_lazy(add_words(u, v), s, m.q), m.q);
  v = drop(mul_lazy(difference, w, m.q), m.q);
}

// Stages of distance kT, kT / 2, .., 1 on block number b of 2 kWords words. The stage of distance t uses roots
// at base * size / (2t) + group. Loads of kWords roots stay within the table, which has as many more for every t > 1.
template <bool kSmall, int64_t kT>
inline void forward_within(Vw& u, Vw& v, const Ring& r, const ModW& m, int64_t first, int64_t b) {
  if constexpr (kT >= 1) {
    change_layout<2 * kT, kT>(u, v);
    const int64_t at = first + b * (kWords / kT);
    forward_butterfly<kSmall>(u, v, load_factor(r.roots + at, r.quotients + at, kGroups<kT>.of), m);
    forward_within<kSmall, kT / 2>(u, v, r, m, 2 * first, b);
  }
}

template <bool kSmall, int64_t kT>
inline void inverse_within(Vw& u, Vw& v, const Ring& r, const ModW& m, int64_t first, int64_t b) {
  if constexpr (kT < kWords) {
    const int64_t at = first + b * (kWords / kT);
    inverse_butterfly<kSmall>(u, v, load_factor(r.inverse_roots + at, r.inverse_quotients + at, kGroups<kT>.of), m);
    change_layout<kT, 2 * kT>(u, v);
    inverse_within<kSmall, 2 * kT>(u, v, r, m, first / 2, b);
  }
}

// What the first pass of a forward transform does to the words it loads.
struct NoEntry {
  Vw operator()(Vw x) const { return x; }
};

// Stages of distance 2h and h of a part of `size` words whose root of groups is `base`; canonical or lazy by kSmall.
template <bool kSmall, class Entry>
inline void forward_pass(uint32_t* to, const uint32_t* from, int64_t size, int64_t h, int64_t base, const Ring& r,
                         const ModW& m, const Entry& entry) {
  const int64_t groups = size / (4 * h);
  for (int64_t i = 0; i < groups; ++i) {
    const Factor f1 = root_factor(r, groups * base + i);
    const Factor f2 = root_factor(r, 2 * (groups * base + i));
    const Factor f3 = root_factor(r, 2 * (groups * base + i) + 1);
    for (int64_t j = 4 * h * i; j < 4 * h * i + h; j += kWords) {
      Vw x0 = entry(load_words(from + j)), x1 = entry(load_words(from + j + h));
      Vw x2 = entry(load_words(from + j + 2 * h)), x3 = entry(load_words(from + j + 3 * h));
      forward_butterfly<kSmall>(x0, x2, f1, m);
      forward_butterfly<kSmall>(x1, x3, f1, m);
      forward_butterfly<kSmall>(x0, x1, f2, m);
      forward_butterfly<kSmall>(x2, x3, f3, m);
      store_words(to + j, x0), store_words(to + j + h, x1);
      store_words(to + j + 2 * h, x2), store_words(to + j + 3 * h, x3);
    }
  }
}

// One stage of distance size / 2.
template <bool kSmall>
inline void forward_stage(uint32_t* a, int64_t size, int64_t base, const Ring& r, const ModW& m) {
  const Factor f = root_factor(r, base);
  for (int64_t j = 0; j < size / 2; j += kWords) {
    Vw u = load_words(a + j), v = load_words(a + j + size / 2);
    forward_butterfly<kSmall>(u, v, f, m);
    store_words(a + j, u), store_words(a + j + size / 2, v);
  }
}

// Whether the stages of distance size / 2, .., 2 kWords are odd in number.
inline bool odd_stages(int64_t size) {
  bool odd = false;
  for (int64_t t = size / 2; t >= 2 * kWords; t /= 2) odd = !odd;
  return odd;
}

template <bool kSmall>
inline void forward_part(uint32_t* a, int64_t size, int64_t base, const Ring& r, const ModW& m) {
  const bool odd = odd_stages(size);
  if (odd) forward_stage<kSmall>(a, size, base, r, m);
  for (int64_t h = odd ? size / 8 : size / 4; h >= 2 * kWords; h /= 4) {
    forward_pass<kSmall>(a, a, size, h, base, r, m, NoEntry{});
  }
  const int64_t blocks = size / (2 * kWords);
  for (int64_t b = 0; b < blocks; ++b) {
    uint32_t* const at = a + 2 * kWords * b;
    Vw u = load_words(at), v = load_words(at + kWords);
    forward_butterfly<kSmall>(u, v, root_factor(r, blocks * base + b), m);
    forward_within<kSmall, kWords / 2>(u, v, r, m, 2 * blocks * base, b);
    if constexpr (kWords > 1) change_layout<1, kWords>(u, v);
    if constexpr (kSmall) u = drop(drop(u, m.q2), m.q), v = drop(drop(v, m.q2), m.q);
    store_words(at, u), store_words(at + kWords, v);
  }
}

// Canonical words out. In: what `entry` makes of a word must be below 4q when small, canonical otherwise.
template <bool kSmall, class Entry>
inline void forward_from(uint32_t* to, const uint32_t* from, const Ring& r, const Entry& entry) {
  const ModW m = make_modw(r.q);
  forward_pass<kSmall>(to, from, r.n, r.n / 4, 1, r, m, entry);
  for (int64_t i = 0; i < 4; ++i) forward_part<kSmall>(to + i * (r.n / 4), r.n / 4, 4 + i, r, m);
}

inline void forward_ntt(uint32_t* a, const Ring& r) {
  if (is_small(r.q)) {
    forward_from<true>(a, a, r, NoEntry{});
  } else {
    forward_from<false>(a, a, r, NoEntry{});
  }
}

// Stages of distance h and 2h; with kLast the second of them ends the transform and brings in the factor n^-1.
template <bool kSmall, bool kLast>
inline void inverse_pass(uint32_t* a, int64_t size, int64_t h, int64_t base, const Ring& r, const ModW& m) {
  const int64_t groups = size / (4 * h);
  const Factor scale = inverse_factor(r, 0);
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t at = groups * base + i;
    const uint32_t last = kLast ? mul_shoup(r.inverse_roots[at], r.inverse_roots[0], r.inverse_quotients[0], r.q) : 0;
    const Factor f1 = kLast ? set_factor(last, shoup_quotient(last, r.q)) : inverse_factor(r, at);
    const Factor f2 = inverse_factor(r, 2 * at);
    const Factor f3 = inverse_factor(r, 2 * at + 1);
    for (int64_t j = 4 * h * i; j < 4 * h * i + h; j += kWords) {
      Vw x0 = load_words(a + j), x1 = load_words(a + j + h);
      Vw x2 = load_words(a + j + 2 * h), x3 = load_words(a + j + 3 * h);
      inverse_butterfly<kSmall>(x0, x1, f2, m);
      inverse_butterfly<kSmall>(x2, x3, f3, m);
      if constexpr (kLast) {
        last_inverse_butterfly<kSmall>(x0, x2, scale, f1, m);
        last_inverse_butterfly<kSmall>(x1, x3, scale, f1, m);
      } else {
        inverse_butterfly<kSmall>(x0, x2, f1, m);
        inverse_butterfly<kSmall>(x1, x3, f1, m);
      }
      store_words(a + j, x0), store_words(a + j + h, x1);
      store_words(a + j + 2 * h, x2), store_words(a + j + 3 * h, x3);
    }
  }
}

template <bool kSmall>
inline void inverse_part(uint32_t* a, int64_t size, int64_t base, const Ring& r, const ModW& m) {
  const int64_t blocks = size / (2 * kWords);
  for (int64_t b = 0; b < blocks; ++b) {
    uint32_t* const at = a + 2 * kWords * b;
    Vw u = load_words(at), v = load_words(at + kWords);
    if constexpr (kWords > 1) change_layout<kWords, 1>(u, v);
    inverse_within<kSmall, 1>(u, v, r, m, size / 2 * base, b);
    inverse_butterfly<kSmall>(u, v, inverse_factor(r, blocks * base + b), m);
    store_words(at, u), store_words(at + kWords, v);
  }
  const bool odd = odd_stages(size);
  for (int64_t h = 2 * kWords; 4 * h <= size; h *= 4) inverse_pass<kSmall, false>(a, size, h, base, r, m);
  if (!odd) return;
  const Factor f = inverse_factor(r, base);
  for (int64_t j = 0; j < size / 2; j += kWords) {
    Vw u = load_words(a + j), v = load_words(a + j + size / 2);
    inverse_butterfly<kSmall>(u, v, f, m);
    store_words(a + j, u), store_words(a + j + size / 2, v);
  }
}

// Canonical words in and out.
template <bool kSmall>
inline void inverse_whole(uint32_t* a, const Ring& r) {
  const ModW m = make_modw(r.q);
  for (int64_t i = 0; i < 4; ++i) inverse_part<kSmall>(a + i * (r.n / 4), r.n / 4, 4 + i, r, m);
  inverse_pass<kSmall, true>(a, r.n, r.n / 4, 1, r, m);
}

inline void inverse_ntt(uint32_t* a, const Ring& r) {
  if (is_small(r.q)) {
    inverse_whole<true>(a, r);
  } else {
    inverse_whole<false>(a, r);
  }
}

// n residues, a multiple of kWords, to words; false when one of them was outside 0 <= x < q.
inline bool pack_words(uint32_t* to, const int64_t* x, int64_t n, uint32_t q) {
  const ModV m = make_modv(q);
  Raw bad = zero_raw();
  for (int64_t i = 0; i < n; i += kWords) store_words(to + i, narrow_words(x + i, bad, m));
  return !any_bad(bad);
}

inline void ntt_task(const NttJob& job, int64_t task, uint32_t* scratch) {
  const Ring r = ring_of(job.ring, task / job.p.runs);
  const int64_t begin = task * r.n;
  if (!pack_words(scratch, job.x + begin, r.n, r.q)) {
    job.bad->seen.store(true);
    return;
  }
  if (job.inverse) {
    inverse_ntt(scratch, r);
  } else {
    forward_ntt(scratch, r);
  }
  for (int64_t i = 0; i < r.n; i += kWords) store_widened(job.y + begin + i, load_words(scratch + i));
}
