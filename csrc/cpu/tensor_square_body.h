// The quadratic of a ciphertext for one instruction set. Included after pointwise_body.h.

// The row of a channel in a table [L, 1 or C, width], null without a table; channel_stride 0: one row for all channels.
inline const int64_t* channel_row(const int64_t* table, int64_t limb, int64_t channel, int64_t channels,
                                  int64_t channel_stride, int64_t width) {
  if (table == nullptr) return nullptr;
  return table + limb * width * (channel_stride == 0 ? 1 : channels) + channel * channel_stride;
}

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
  const int64_t* shift = channel_row(job.shift, limb, channel, p.channels, p.shift_channel_stride, 1);
  const int64_t* a = channel_row(job.coefficients, limb, channel, p.channels, p.coefficients_channel_stride, 3);
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
