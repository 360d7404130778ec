// relinearise and rescale for one instruction set. Included after ntt_body.h.

// How words below a bound become what a forward transform modulo q takes.
enum class Reduction {
  kNone,   // small q: bound <= 4q; other q: bound <= q
  kDrop,   // small q with an offset: bound <= 4q; other q: bound <= 2q
  kShoup,  // any word: times 1
};
template <Reduction kReduction, bool kSmall, bool kOffset>
struct Reduce {
  ModW m;
  Factor one;
  Vw offset;  // canonical
  Vw operator()(Vw x) const {
    if constexpr (kReduction == Reduction::kDrop) x = drop(x, kSmall ? m.q2 : m.q);
    if constexpr (kReduction == Reduction::kShoup) {
      x = mul_lazy(x, one, m.q);
      if constexpr (!kSmall) x = drop(x, m.q);
    }
    if constexpr (kOffset) {
      x = add_words(x, offset);  // small: below 2q + q
      if constexpr (!kSmall) x = drop(x, m.q);
    }
    return x;
  }
};

template <Reduction kReduction, bool kSmall, bool kOffset>
inline void forward_reduced_by(uint32_t* to, const uint32_t* from, uint32_t offset, const Ring& r) {
  const Reduce<kReduction, kSmall, kOffset> entry = {make_modw(r.q), set_factor(1, shoup_quotient(1, r.q)),
                                                     set_word(offset)};
  forward_from<kSmall>(to, from, r, entry);
}

// Transform modulo r.q of words below `bound` plus a canonical offset.
template <bool kOffset>
inline void forward_reduced(uint32_t* to, const uint32_t* from, uint32_t bound, uint32_t offset, const Ring& r) {
  const uint64_t q = r.q;
  if (is_small(r.q)) {
    // The offset leaves room for [0, 2q) only.
    if (bound <= (kOffset ? 2 : 4) * q) return forward_reduced_by<Reduction::kNone, true, kOffset>(to, from, offset, r);
    if (kOffset && bound <= 4 * q) return forward_reduced_by<Reduction::kDrop, true, kOffset>(to, from, offset, r);
    return forward_reduced_by<Reduction::kShoup, true, kOffset>(to, from, offset, r);
  }
  if (bound <= q) return forward_reduced_by<Reduction::kNone, false, kOffset>(to, from, offset, r);
  forward_reduced_by<Reduction::kDrop, false, kOffset>(to, from, offset, r);  // bound < 2^31 <= 2q
}

// Coefficients c modulo p to c + floor(p / 2) modulo p: rounding down then rounds to nearest.
inline void add_half(uint32_t* c, int64_t n, uint32_t p) {
  const Vw half = set_word(p >> 1), pv = set_word(p);
  for (int64_t k = 0; k < n; k += kWords) store_words(c + k, drop(add_words(load_words(c + k), half), pv));
}

// What add_half left of the coefficients modulo p, minus the half, as a polynomial modulo r.q in transformed form.
inline void rounding_remainder(uint32_t* to, const uint32_t* c, uint32_t p, const Ring& r) {
  forward_reduced<true>(to, c, p, (r.q - (p >> 1) % r.q) % r.q, r);
}

// (x - rest) / p for a factor that is p^-1; all canonical.
inline Vw divide_exactly(Vw x, Vw rest, const Factor& inverse, const ModW& m) {
  return drop(mul_lazy(add_words(sub_words(x, rest), m.q), inverse, m.q), m.q);
}

// Task: row (digit i, component c, modulus j) of the keys, times 2^32 for Montgomery's reduction.
inline void pack_keys_task(const RelineariseJob& job, int64_t task, uint32_t* packed) {
  const int64_t limbs = job.p.limbs, n = job.p.n;
  const int64_t j = task % (limbs + 1);
  const int64_t c = task / (limbs + 1) % 2;
  const int64_t i = task / (limbs + 1) / 2;
  const uint32_t q = static_cast<uint32_t>(job.ring.moduli[j]);
  const uint32_t radix = static_cast<uint32_t>((uint64_t{1} << 32) % q);
  const Factor f = set_factor(radix, shoup_quotient(radix, q));
  const ModW m = make_modw(q);
  const ModV mv = make_modv(q);
  const int64_t* from = job.keys + task * n;
  const int64_t run = job.plan.key_run;
  uint32_t* to = packed + j * limbs * 2 * n + (2 * i + c) * run;
  Raw bad = zero_raw();
  for (int64_t k = 0; k < n; k += kWords) {
    store_words(to + k / run * 2 * limbs * run + k % run, drop(mul_lazy(narrow_words(from + k, bad, mv), f, m.q), m.q));
  }
  if (any_bad(bad)) job.bad->seen.store(true);
}

// q^-1 mod 2^32 for odd q, by Newton: q itself is right modulo 8, every step doubles the bits.
inline uint32_t inverse_mod_2_32(uint32_t q) {
  uint32_t x = q;
  for (int i = 0; i < 4; ++i) x *= 2 - q * x;
  return x;
}

// body(k, s0, s1): canonical sums over the digits of transformed digit times key, for both components, at word k.
// rows [digits, n], keys [n / run, digits, 2, run]. Sums stay below 2^32 q; so do the products of floor(2^32 / q)
// digits, which are added between two folds.
template <class Body>
inline void inner_product(const uint32_t* rows, const uint32_t* keys, int64_t digits, int64_t n, int64_t run,
                          uint32_t q, const Body& body) {
  const int64_t step = static_cast<int64_t>((uint64_t{1} << 32) / q);
  const Vw inverse = set_word(inverse_mod_2_32(q)), qv = set_word(q);
  for (int64_t k = 0; k < n; k += kWords) {
    const uint32_t* key = keys + k / run * 2 * digits * run + k % run;
    Wide s0 = zero_wide(), s1 = zero_wide();
    for (int64_t i = 0; i < digits;) {
      const int64_t end = digits - i < step ? digits : i + step;
      for (; i < end; ++i, key += 2 * run) {
        const Vw x = load_words(rows + i * n + k);
        const Vw x_odd = odd_words(x);
        s0 = mul_add_wide(s0, x, x_odd, load_words(key));
        s1 = mul_add_wide(s1, x, x_odd, load_words(key + run));
      }
      s0 = fold_wide(s0, q);
      s1 = fold_wide(s1, q);
    }
    body(k, reduce_wide(s0, inverse, qv), reduce_wide(s1, inverse, qv));
  }
}

struct RelineariseScratch {
  uint32_t* digits;  // [positions, L, n] coefficients of the third component modulo q_i
  uint32_t* high;    // [positions, 2, n] coefficients of the sums modulo the special prime
  uint32_t* rows;    // [L, n] the digits of one position modulo q_j, transformed
  uint32_t* rest;    // [2, n] `high` modulo q_j, transformed
};

// Inner products of one position modulo the j-th prime.
template <class Body>
inline void switch_key(const RelineariseJob& job, int64_t position, int64_t j, const uint32_t* digits,
                       const RelineariseScratch& s, const Body& body) {
  const int64_t limbs = job.p.limbs, n = job.p.n;
  const Ring r = ring_of(job.ring, j);
  for (int64_t i = 0; i < limbs; ++i) {
    if (i == j) {  // already in transformed form
      pack_words(s.rows + i * n, job.x + ((i * job.p.positions + position) * 3 + 2) * n, n, r.q);
    } else {
      forward_reduced<false>(s.rows + i * n, digits + i * n, static_cast<uint32_t>(job.ring.moduli[i]), 0, r);
    }
  }
  inner_product(s.rows, job.packed + j * limbs * 2 * n, limbs, n, job.plan.key_run, r.q, body);
}

// The sums modulo the j-th prime, divided by the special prime and added to the first two components.
inline bool finish_limb(const RelineariseJob& job, int64_t position, int64_t j, const uint32_t* digits,
                        const uint32_t* high, const RelineariseScratch& s) {
  const int64_t n = job.p.n;
  const Ring r = ring_of(job.ring, j);
  const uint32_t special = static_cast<uint32_t>(job.ring.moduli[job.p.limbs]);
  for (int64_t c = 0; c < 2; ++c) rounding_remainder(s.rest + c * n, high + c * n, special, r);
  const int64_t* x = job.x + (j * job.p.positions + position) * 3 * n;
  int64_t* y = job.y + (j * job.p.positions + position) * 2 * n;
  const Factor inverse = set_factor(job.inverse[j], shoup_quotient(job.inverse[j], r.q));
  const ModW m = make_modw(r.q);
  const ModV mv = make_modv(r.q);
  Raw bad = zero_raw();
  switch_key(job, position, j, digits, s, [&](int64_t k, Vw s0, Vw s1) {
    const Vw share0 = divide_exactly(s0, load_words(s.rest + k), inverse, m);
    const Vw share1 = divide_exactly(s1, load_words(s.rest + n + k), inverse, m);
    store_widened(y + k, drop(add_words(share0, narrow_words(x + k, bad, mv)), m.q));
    store_widened(y + n + k, drop(add_words(share1, narrow_words(x + n + k, bad, mv)), m.q));
  });
  return !any_bad(bad);
}

// `count` positions from `first` on, at most plan.positions. The keys for one prime serve all of them before the next.
inline void relinearise_task(const RelineariseJob& job, int64_t first, int64_t count, uint32_t* scratch) {
  const int64_t limbs = job.p.limbs, n = job.p.n;
  RelineariseScratch s{};
  s.digits = scratch;
  s.high = s.digits + job.plan.positions * limbs * n;
  s.rows = s.high + job.plan.positions * 2 * n;
  s.rest = s.rows + limbs * n;
  bool good = true;
  for (int64_t i = 0; i < limbs; ++i) {
    const Ring r = ring_of(job.ring, i);
    for (int64_t p = 0; p < count; ++p) {
      uint32_t* digit = s.digits + (p * limbs + i) * n;
      good = pack_words(digit, job.x + ((i * job.p.positions + first + p) * 3 + 2) * n, n, r.q) && good;
      inverse_ntt(digit, r);
    }
  }
  const Ring special = ring_of(job.ring, limbs);
  for (int64_t p = 0; p < count; ++p) {
    uint32_t* high = s.high + p * 2 * n;
    switch_key(job, first + p, limbs, s.digits + p * limbs * n, s, [&](int64_t k, Vw s0, Vw s1) {
      store_words(high + k, s0);
      store_words(high + n + k, s1);
    });
    for (int64_t c = 0; c < 2; ++c) {
      inverse_ntt(high + c * n, special);
      add_half(high + c * n, n, special.q);
    }
  }
  for (int64_t j = 0; j < limbs; ++j) {
    for (int64_t p = 0; p < count; ++p) {
      good = finish_limb(job, first + p, j, s.digits + p * limbs * n, s.high + p * 2 * n, s) && good;
    }
  }
  if (!good) job.bad->seen.store(true);
}

inline void rescale_task(const RescaleJob& job, int64_t task, uint32_t* scratch) {
  const int64_t limbs = job.p.limbs, n = job.p.n, stride = job.p.runs * n;
  const int64_t* x = job.x + task * n;
  uint32_t* last = scratch;
  uint32_t* rest = scratch + n;
  const Ring dropped = ring_of(job.ring, limbs - 1);
  bool good = pack_words(last, x + (limbs - 1) * stride, n, dropped.q);
  inverse_ntt(last, dropped);
  add_half(last, n, dropped.q);
  for (int64_t j = 0; j < limbs - 1; ++j) {
    const Ring r = ring_of(job.ring, j);
    const Factor inverse = set_factor(job.inverse[j], shoup_quotient(job.inverse[j], r.q));
    const ModW m = make_modw(r.q);
    const ModV mv = make_modv(r.q);
    int64_t* y = job.y + j * stride + task * n;
    Raw bad = zero_raw();
    rounding_remainder(rest, last, dropped.q, r);
    for (int64_t k = 0; k < n; k += kWords) {
      const Vw value = narrow_words(x + j * stride + k, bad, mv);
      store_widened(y + k, divide_exactly(value, load_words(rest + k), inverse, m));
    }
    good = !any_bad(bad) && good;
  }
  if (!good) job.bad->seen.store(true);
}

constexpr LatticeKernels kLattice = {8 * kWords,     ntt_task,         tensor_square_task, tensor_square_pool_task,
                                     pack_keys_task, relinearise_task, rescale_task};
