// The quadratic of a ciphertext and the sums of its windows for one instruction set. Included after
// tensor_square_body.h.
//
// Sums come first: over a window of k places, the sum of A2 z^2 + A1 z + A0 is A2 (sum of z^2) + A1 (sum of z) + k A0.
// Products of canonical residues add up exactly in 64 bits, so that a window takes one reduction a component where a
// square and a pool take one a place, and no square is stored.

struct WindowSums {
  Raw squares0, products, squares1;  // of z0^2, z0 z1, z1^2; unsigned
  Raw first, second;                 // of z0 and z1, below 2^51
};

inline Raw restarted(Raw sum, const ModV& m) { return Int64Path::restart(lift(reduce_sum(sum, m), m)); }

struct WindowRow {
  const TensorSquareParams& p;
  const ModV& m;
  const int64_t* x;      // the window's first place
  int64_t most;          // products that a sum holds beside a canonical residue
  Raw shift, less;       // the shift, and the shift minus b
  const int64_t* table;  // (A0, A1, A2) or null for (0, 0, 1)

  // k entries from i on of every place; kLinear: the sums of z0 and z1 too.
  template <bool kLinear>
  WindowSums sums(int64_t i, int64_t k, Raw& bad) const {
    WindowSums s{zero_raw(), zero_raw(), zero_raw(), zero_raw(), zero_raw()};
    int64_t left = most;
    for (int64_t row = 0; row < p.pool.h; ++row) {
      const int64_t* place = x + row * p.width * 2 * p.n + i;
      for (int64_t column = 0; column < p.pool.w; ++column, place += 2 * p.n, --left) {
        if (left == 0) {
          s.squares0 = restarted(s.squares0, m);
          s.products = restarted(s.products, m);
          s.squares1 = restarted(s.squares1, m);
          left = most;
        }
        const Raw x0 = load_some(place, k);
        const Raw z1 = load_some(place + p.n, k);
        bad = mark_bad(mark_bad(bad, x0, m), z1, m);
        const Raw z0 = add_mod_raw(x0, shift, less);
        s.squares0 = add_raw(s.squares0, multiply_raw(z0, z0));
        s.products = add_raw(s.products, multiply_raw(z0, z1));
        s.squares1 = add_raw(s.squares1, multiply_raw(z1, z1));
        if constexpr (kLinear) {
          s.first = add_raw(s.first, z0);
          s.second = add_raw(s.second, z1);
        }
      }
    }
    return s;
  }

  Raw square(int64_t* y, Raw bad) const {
    each_vector(p.n, [&](int64_t i, int64_t k) {
      const WindowSums s = sums<false>(i, k, bad);
      const Vr product = lift(reduce_sum(s.products, m), m);
      store_some(y + i, lift(reduce_sum(s.squares0, m), m), k);
      store_some(y + p.n + i, add_mod(product, product, m), k);
      store_some(y + 2 * p.n + i, lift(reduce_sum(s.squares1, m), m), k);
    });
    return bad;
  }

  // a0: k A0 modulo b.
  Raw quadratic(int64_t* y, Vr a0, Raw bad) const {
    const Vr zero = set_residue(0), a1 = set_residue(table[1]), a2 = set_residue(table[2]);
    each_vector(p.n, [&](int64_t i, int64_t k) {
      const WindowSums s = sums<true>(i, k, bad);
      const Vr product = lift(reduce_sum(s.products, m), m);
      const Vr first = lift(mul_add_lazy(reduce_lazy(to_residue(s.first), m), a1, a0, m), m);
      const Vr second = lift(mul_add_lazy(reduce_lazy(to_residue(s.second), m), a1, zero, m), m);
      store_some(y + i, lift(mul_add_lazy(reduce_sum(s.squares0, m), a2, first, m), m), k);
      store_some(y + p.n + i, lift(mul_add_lazy(add_mod(product, product, m), a2, second, m), m), k);
      store_some(y + 2 * p.n + i, lift(mul_add_lazy(reduce_sum(s.squares1, m), a2, zero, m), m), k);
    });
    return bad;
  }
};

// One row of windows of one channel of one limb.
inline void tensor_square_pool_task(const TensorSquareJob& job, int64_t task) {
  const TensorSquareParams& p = job.p;
  const int64_t out_h = p.positions / p.width / p.pool.h, out_w = p.width / p.pool.w;
  const int64_t channel = task / out_h;  // limb * channels + c
  const int64_t limb = channel / p.channels;
  const int64_t b = job.moduli[limb];
  const ModV m = make_modv(b);
  const int64_t* shift = channel_row(job.shift, limb, channel % p.channels, p.channels, p.shift_channel_stride, 1);
  const int64_t* table =
      channel_row(job.coefficients, limb, channel % p.channels, p.channels, p.coefficients_channel_stride, 3);
  const int64_t added = shift == nullptr ? 0 : *shift;
  const uint64_t top = static_cast<uint64_t>(b - 1);
  const uint64_t most = (~uint64_t{0} - top) / (top * top);
  const int64_t* x = job.x + (channel * p.positions + task % out_h * p.pool.h * p.width) * 2 * p.n;
  int64_t* y = job.y + task * out_w * 3 * p.n;
  Raw bad = zero_raw();
  for (int64_t window = 0; window < out_w; ++window) {
    const WindowRow row{p,
                        m,
                        x + window * p.pool.w * 2 * p.n,
                        static_cast<int64_t>(most < INT64_MAX ? most : INT64_MAX),
                        set_raw(added),
                        set_raw(added - b),
                        table};
    int64_t* to = y + window * 3 * p.n;
    if (table == nullptr || (table[0] == 0 && table[1] == 0 && table[2] == 1)) {
      bad = row.square(to, bad);
    } else {
      bad = row.quadratic(to, set_residue(p.pool.h * p.pool.w % b * table[0] % b), bad);
    }
  }
  if (any_bad(bad)) job.bad->seen.store(true);
}
