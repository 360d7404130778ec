// The negacyclic number-theoretic transform of one polynomial modulo one prime, for one instruction set.
//
// forward: out[i] = x(psi^(2 bitrev(i) + 1)), Cooley-Tukey, natural order in, bit-reversed out; inverse undoes it by
// Gentleman-Sande. Roots and order are SEAL's (Longa, Naehrig, "Speeding up the number theoretic transform for faster
// ideal lattice-based cryptography", doi 10.1007/978-3-319-48965-0_8). Words are canonical in and out.

struct Ring {
  uint32_t q;
  int64_t n;
  const uint32_t *roots, *quotients, *inverse_roots, *inverse_quotients;
};

inline Ring ring_of(const RingTables& t, int64_t limb) {
  const uint32_t* rows = t.tables + limb * 4 * t.n;
  return {static_cast<uint32_t>(t.moduli[limb]), t.n, rows, rows + t.n, rows + 2 * t.n, rows + 3 * t.n};
}

inline void forward_ntt(uint32_t* a, const Ring& r) {
  int64_t t = r.n / 2;
  for (int64_t m = 1; m < r.n; m *= 2, t /= 2) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 2 * i * t; j < 2 * i * t + t; ++j) {
        const uint32_t u = a[j];
        const uint32_t v = mul_shoup(a[j + t], r.roots[m + i], r.quotients[m + i], r.q);
        a[j] = add_word(u, v, r.q);
        a[j + t] = sub_word(u, v, r.q);
      }
    }
  }
}

inline void inverse_ntt(uint32_t* a, const Ring& r) {
  int64_t t = 1;
  for (int64_t m = r.n / 2; m >= 1; m /= 2, t *= 2) {
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 2 * i * t; j < 2 * i * t + t; ++j) {
        const uint32_t u = a[j];
        const uint32_t v = a[j + t];
        a[j] = add_word(u, v, r.q);
        a[j + t] = mul_shoup(sub_word(u, v, r.q), r.inverse_roots[m + i], r.inverse_quotients[m + i], r.q);
      }
    }
  }
  for (int64_t j = 0; j < r.n; ++j) a[j] = mul_shoup(a[j], r.inverse_roots[0], r.inverse_quotients[0], r.q);
}

// n residues to words; false when one of them was outside 0 <= x < q.
inline bool pack_words(uint32_t* to, const int64_t* x, int64_t n, uint32_t q) {
  bool good = true;
  for (int64_t i = 0; i < n; ++i) {
    good = good && static_cast<uint64_t>(x[i]) < q;
    to[i] = static_cast<uint32_t>(x[i]);
  }
  return good;
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
  for (int64_t i = 0; i < r.n; ++i) job.y[begin + i] = scratch[i];
}
