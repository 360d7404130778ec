// Pooling, polynomials, aligned addition and the range count for one instruction set. Included after
// conv_task_body.h.

// One output row of one channel of one limb: window sums, times the factor.
inline void sum_pool2d_task(const PoolJob& job, int64_t task) {
  const PoolParams& p = job.p;
  const int64_t oh = task % p.out_h;
  const int64_t channel = task / p.out_h;  // limb * channels + c
  const int64_t limb = channel / p.channels;
  const ModV m = make_modv(job.moduli[limb]);
  const Vr factor = set_residue(job.factor == nullptr ? 1 : job.factor[limb]);
  const Vr zero = set_residue(0);
  const bool scaled = job.factor != nullptr && job.factor[limb] != 1;
  const int64_t* x = job.x + channel * p.height * p.width * p.stream;
  int64_t* y = job.y + (channel * p.out_h + oh) * p.out_w * p.stream;
  const int64_t top = oh * p.stride_h - p.padding_h;
  const int64_t h0 = top < 0 ? 0 : top;
  const int64_t h1 = top + p.kernel_h > p.height ? p.height : top + p.kernel_h;
  Raw bad = zero_raw();
  for (int64_t ow = 0; ow < p.out_w; ++ow) {
    const int64_t left = ow * p.stride_w - p.padding_w;
    const int64_t w0 = left < 0 ? 0 : left;
    const int64_t w1 = left + p.kernel_w > p.width ? p.width : left + p.kernel_w;
    each_vector(p.stream, [&](int64_t s, int64_t n) {
      Raw sum = zero_raw();
      for (int64_t h = h0; h < h1; ++h) {
        for (int64_t w = w0; w < w1; ++w) {
          const Raw value = load_some(x + (h * p.width + w) * p.stream + s, n);
          bad = mark_bad(bad, value, m);
          sum = add_raw(sum, value);
        }
      }
      // The window has fewer than 2^20 entries (checked), so the sum is below 2^51.
      Vr r = reduce_lazy(to_residue(sum), m);
      if (scaled) r = mul_add_lazy(r, factor, zero, m);
      store_some(y + ow * p.stream + s, lift(r, m), n);
    });
  }
  if (any_bad(bad)) job.bad->seen.store(true);
}

struct PointwiseBlock {
  int64_t row, limb, channel, begin, count;
};

inline PointwiseBlock locate_block(const PointwiseParams& p, int64_t task) {
  const int64_t blocks = (p.inner + kPointwiseBlock - 1) / kPointwiseBlock;
  PointwiseBlock b;
  b.row = task / blocks;
  b.limb = b.row / p.channels;
  b.channel = b.row % p.channels;
  const int64_t start = (task % blocks) * kPointwiseBlock;
  b.begin = b.row * p.inner + start;
  b.count = p.inner - start < kPointwiseBlock ? p.inner - start : kPointwiseBlock;
  return b;
}

inline void poly_task(const PolyJob& job, int64_t task) {
  const PointwiseBlock b = locate_block(job.p, task);
  const ModV m = make_modv(job.moduli[b.limb]);
  const int64_t rows = job.channel_stride == 0 ? 1 : job.p.channels;
  const int64_t* table = job.table + (b.limb * rows) * (job.degree + 1) + b.channel * job.channel_stride;
  Raw bad = zero_raw();
  each_vector(b.count, [&](int64_t i, int64_t n) {
    const Raw x = load_some(job.x + b.begin + i, n);
    bad = mark_bad(bad, x, m);
    Vr r[1] = {to_residue(x)};
    horner(r, table, job.degree, m);
    store_some(job.y + b.begin + i, lift(r[0], m), n);
  });
  if (any_bad(bad)) job.bad->seen.store(true);
}

inline void add_const_task(const AddConstJob& job, int64_t task) {
  const int64_t row = task / (job.p.inner / job.stream);  // limb * channels + channel
  const int64_t limb = row / job.p.channels;
  const int64_t rows = job.channel_stride == 0 ? 1 : job.p.channels;
  const ModV m = make_modv(job.moduli[limb]);
  const Vr constant = set_residue(job.constant[limb * rows + row % job.p.channels * job.channel_stride]);
  const int64_t begin = task * job.stream;
  Raw bad = zero_raw();
  each_vector(job.head, [&](int64_t i, int64_t n) {
    const Raw x = load_some(job.x + begin + i, n);
    bad = mark_bad(bad, x, m);
    store_some(job.y + begin + i, add_mod(to_residue(x), constant, m), n);
  });
  each_vector(job.stream - job.head, [&](int64_t i, int64_t n) {
    const Raw x = load_some(job.x + begin + job.head + i, n);
    bad = mark_bad(bad, x, m);
    store_some(job.y + begin + job.head + i, to_residue(x), n);
  });
  if (any_bad(bad)) job.bad->seen.store(true);
}

inline void align_add_task(const AlignAddJob& job, int64_t task) {
  const PointwiseBlock b = locate_block(job.p, task);
  const ModV m = make_modv(job.moduli[b.limb]);
  const int64_t fx = job.x_factor == nullptr ? 1 : job.x_factor[b.limb];
  const int64_t fy = job.y_factor == nullptr ? 1 : job.y_factor[b.limb];
  const Vr zero = set_residue(0);
  Raw bad = zero_raw();
  each_vector(b.count, [&](int64_t i, int64_t n) {
    const Raw x = load_some(job.x + b.begin + i, n);
    const Raw y = load_some(job.y + b.begin + i, n);
    bad = mark_bad(mark_bad(bad, x, m), y, m);
    const Vr rx = to_residue(x);
    const Vr ry = to_residue(y);
    if (fx == 1 && fy == 1) {
      store_some(job.z + b.begin + i, add_mod(rx, ry, m), n);
    } else {
      const Vr aligned = fy == 1 ? ry : lift(mul_add_lazy(ry, set_residue(fy), zero, m), m);
      store_some(job.z + b.begin + i, lift(mul_add_lazy(rx, set_residue(fx), aligned, m), m), n);
    }
  });
  if (any_bad(bad)) job.bad->seen.store(true);
}

inline int64_t count_out_of_range_in(const int64_t* x, int64_t begin, int64_t end, int64_t b) {
  int64_t count = 0;
  for (int64_t i = begin; i < end; ++i) count += static_cast<uint64_t>(x[i]) >= static_cast<uint64_t>(b);
  return count;
}
