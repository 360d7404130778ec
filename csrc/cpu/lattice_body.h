// tensor_square, relinearise and rescale for one instruction set. Included after pointwise_body.h and ntt_body.h.

inline void tensor_square_task(const TensorSquareJob& job, int64_t task) {
  const TensorSquareParams& p = job.p;
  const int64_t blocks = (p.n + kPointwiseBlock - 1) / kPointwiseBlock;
  const int64_t row = task / blocks;
  const int64_t start = (task % blocks) * kPointwiseBlock;
  const int64_t count = p.n - start < kPointwiseBlock ? p.n - start : kPointwiseBlock;
  const int64_t channel = row / p.positions % p.channels;
  const int64_t limb = row / p.positions / p.channels;
  const ModV m = make_modv(job.moduli[limb]);
  const Vr zero = set_residue(0);
  const int64_t* x = job.x + row * 2 * p.n + start;
  int64_t* y = job.y + row * 3 * p.n + start;
  const int64_t* shift = job.shift == nullptr ? nullptr
                                              : job.shift + limb * (p.shift_channel_stride == 0 ? 1 : p.channels) +
                                                    channel * p.shift_channel_stride;
  const int64_t* a = job.coefficients == nullptr
                         ? nullptr
                         : job.coefficients + limb * 3 * (p.coefficients_channel_stride == 0 ? 1 : p.channels) +
                               channel * p.coefficients_channel_stride;
  const Vr s = set_residue(shift == nullptr ? 0 : *shift);
  Raw bad = zero_raw();
  if (a == nullptr || (a[0] == 0 && a[1] == 0 && a[2] == 1)) {
    each_vector(count, [&](int64_t i, int64_t k) {
      const Raw x0 = load_some(x + i, k);
      const Raw x1 = load_some(x + p.n + i, k);
      bad = mark_bad(mark_bad(bad, x0, m), x1, m);
      const Vr z0 = shift == nullptr ? to_residue(x0) : add_mod(to_residue(x0), s, m);
      const Vr z1 = to_residue(x1);
      store_some(y + i, lift(mul_add_lazy(z0, z0, zero, m), m), k);
      store_some(y + p.n + i, lift(mul_add_lazy(add_mod(z0, z0, m), z1, zero, m), m), k);
      store_some(y + 2 * p.n + i, lift(mul_add_lazy(z1, z1, zero, m), m), k);
    });
  } else {
    const Vr a0 = set_residue(a[0]), a1 = set_residue(a[1]), a2 = set_residue(a[2]);
    each_vector(count, [&](int64_t i, int64_t k) {
      const Raw x0 = load_some(x + i, k);
      const Raw x1 = load_some(x + p.n + i, k);
      bad = mark_bad(mark_bad(bad, x0, m), x1, m);
      const Vr z0 = add_mod(to_residue(x0), s, m);
      const Vr z1 = to_residue(x1);
      const Vr scaled = lift(mul_add_lazy(z0, a2, zero, m), m);  // A2 z0
      const Vr slope = add_mod(scaled, a1, m);                   // A2 z0 + A1
      store_some(y + i, lift(mul_add_lazy(slope, z0, a0, m), m), k);
      store_some(y + p.n + i, lift(mul_add_lazy(add_mod(scaled, slope, m), z1, zero, m), m), k);
      const Vr square = lift(mul_add_lazy(z1, z1, zero, m), m);
      store_some(y + 2 * p.n + i, lift(mul_add_lazy(square, a2, zero, m), m), k);
    });
  }
  if (any_bad(bad)) job.bad->seen.store(true);
}

// A polynomial to be divided by a prime p: coefficients c + floor(p / 2) modulo p, so that rounding down rounds to
// nearest.
inline void add_half(uint32_t* c, int64_t n, uint32_t p) {
  for (int64_t k = 0; k < n; ++k) c[k] = add_word(c[k], p >> 1, p);
}

// What add_half left of the coefficients modulo p, as a polynomial modulo r.q in transformed form.
inline void rounding_remainder(uint32_t* to, const uint32_t* c, uint32_t p, const Ring& r) {
  const Modulus m = make_modulus(r.q);
  const uint32_t half = static_cast<uint32_t>(barrett_u64(p >> 1, m));
  for (int64_t k = 0; k < r.n; ++k) to[k] = sub_word(static_cast<uint32_t>(barrett_u64(c[k], m)), half, r.q);
  forward_ntt(to, r);
}

// Task: row (digit i, component k, modulus j) of the keys.
inline void pack_keys_task(const RelineariseJob& job, int64_t task, uint32_t* packed) {
  const int64_t limbs = job.p.limbs, n = job.p.n;
  const int64_t j = task % (limbs + 1);
  const int64_t row = task / (limbs + 1);  // 2 i + k
  if (!pack_words(packed + (j * 2 * limbs + row) * n, job.keys + task * n, n,
                  static_cast<uint32_t>(job.ring.moduli[j]))) {
    job.bad->seen.store(true);
  }
}

// sum over the digits of transformed digit times key, for both components. rows [digits, n], keys [digits, 2, n].
inline void inner_product(uint32_t* to, const uint32_t* rows, const uint32_t* keys, int64_t digits, int64_t n,
                          uint32_t q) {
  const Modulus m = make_modulus(q);
  for (int64_t c = 0; c < 2; ++c) {
    for (int64_t k = 0; k < n; ++k) {
      uint64_t sum = 0;
      for (int64_t i = 0; i < digits; ++i) {
        sum = barrett_u64(sum + static_cast<uint64_t>(rows[i * n + k]) * keys[(2 * i + c) * n + k], m);
      }
      to[c * n + k] = static_cast<uint32_t>(sum);
    }
  }
}

inline void relinearise_task(const RelineariseJob& job, int64_t task, uint32_t* scratch) {
  const int64_t limbs = job.p.limbs, n = job.p.n;
  const int64_t stride = job.p.positions * 3 * n;  // between limbs of x
  const int64_t* x = job.x + task * 3 * n;
  uint32_t* digits = scratch;           // [L, n] coefficients of c2 modulo q_i
  uint32_t* rows = digits + limbs * n;  // [L, n] the same modulo q_j, transformed
  uint32_t* high = rows + limbs * n;    // [2, n] coefficients modulo the special prime
  uint32_t* sums = high + 2 * n;        // [2, n]
  uint32_t* rest = sums + 2 * n;        // [n]
  bool good = true;
  for (int64_t i = 0; i < limbs; ++i) {
    const Ring r = ring_of(job.ring, i);
    good = good && pack_words(digits + i * n, x + i * stride + 2 * n, n, r.q);
    inverse_ntt(digits + i * n, r);
  }
  const uint32_t special = static_cast<uint32_t>(job.ring.moduli[limbs]);
  for (int64_t j = limbs; good && j >= 0; --j) {
    const Ring r = ring_of(job.ring, j);
    const Modulus m = make_modulus(r.q);
    for (int64_t i = 0; i < limbs; ++i) {
      uint32_t* row = rows + i * n;
      if (i == j) {
        pack_words(row, x + i * stride + 2 * n, n, r.q);
        continue;
      }
      for (int64_t k = 0; k < n; ++k) row[k] = static_cast<uint32_t>(barrett_u64(digits[i * n + k], m));
      forward_ntt(row, r);
    }
    const uint32_t* keys = job.packed + j * limbs * 2 * n;
    inner_product(j == limbs ? high : sums, rows, keys, limbs, n, r.q);
    if (j == limbs) {
      for (int64_t c = 0; c < 2; ++c) {
        inverse_ntt(high + c * n, r);
        add_half(high + c * n, n, special);
      }
      continue;
    }
    const uint32_t inverse = job.inverse[j];
    const uint32_t quotient = shoup_quotient(inverse, r.q);
    for (int64_t c = 0; c < 2; ++c) {
      const int64_t* from = x + j * stride + c * n;
      int64_t* y = job.y + (j * job.p.positions + task) * 2 * n + c * n;
      rounding_remainder(rest, high + c * n, special, r);
      for (int64_t k = 0; k < n; ++k) {
        good = good && static_cast<uint64_t>(from[k]) < r.q;
        const uint32_t share = mul_shoup(sub_word(sums[c * n + k], rest[k], r.q), inverse, quotient, r.q);
        y[k] = add_word(share, static_cast<uint32_t>(from[k]), r.q);
      }
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
    const uint32_t inverse = job.inverse[j];
    const uint32_t quotient = shoup_quotient(inverse, r.q);
    rounding_remainder(rest, last, dropped.q, r);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t value = x[j * stride + k];
      good = good && static_cast<uint64_t>(value) < r.q;
      job.y[j * stride + task * n + k] =
          mul_shoup(sub_word(static_cast<uint32_t>(value), rest[k], r.q), inverse, quotient, r.q);
    }
  }
  if (!good) job.bad->seen.store(true);
}

constexpr LatticeKernels kLattice = {ntt_task, tensor_square_task, pack_keys_task, relinearise_task, rescale_task};
