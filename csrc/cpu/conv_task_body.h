// One task of a convolution: its rows, and the pool behind them. Included after conv_body.h.

// Calls body(offset, count) for each vector of n contiguous entries; count < kLanes only for the last.
template <class Body>
inline void each_vector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, n - i);
}
inline Raw load_some(const int64_t* p, int64_t n) { return n == kLanes ? load_raw(p) : load_raw(p, n); }
inline void store_some(int64_t* p, Vr v, int64_t n) {
  if (n == kLanes) {
    store(p, v);
  } else {
    store(p, v, n);
  }
}

// Sums of `width` neighbours of [windows * width][streams] sums, times the factor: [windows][streams] residues. A
// window has fewer than 2^20 outputs (checked), so the sums are below 2^51.
inline void finish_windows(const int64_t* sums, int64_t windows, int64_t width, int64_t streams, int64_t factor,
                           int64_t* to, const ModV& m) {
  const Vr scale = set_residue(factor);
  const Vr zero = set_residue(0);
  for (int64_t i = 0; i < windows; ++i) {
    each_vector(streams, [&](int64_t s, int64_t n) {
      Raw sum = load_some(sums + i * width * streams + s, n);
      for (int64_t k = 1; k < width; ++k) sum = add_raw(sum, load_some(sums + (i * width + k) * streams + s, n));
      Vr r = reduce_lazy(to_residue(sum), m);
      if (factor != 1) r = mul_add_lazy(r, scale, zero, m);
      store_some(to + i * streams + s, lift(r, m), n);
    });
  }
}

// The task's rows, window by window: the convolution adds the rows of a window in scratch memory, which the cache
// holds, and only sums of whole windows are stored. y: the first row of the task's first channel, [O, OH / h, OW / w,
// S].
template <class P, bool kMid>
inline void run_windows(const ConvJob& job, const ConvTask& t, const typename P::Element* packed, int64_t* sums,
                        int64_t* y, const ModV& m) {
  const ConvPlan& plan = job.plan;
  const ConvParams& p = plan.p;
  const PoolWindow pool = plan.pool;
  const int64_t outputs = p.out_channels / p.groups;
  const int64_t stored_w = p.out_w / pool.w;
  const int64_t plane = p.out_h / pool.h * stored_w * p.stream;
  const int64_t factor = job.factor == nullptr ? 1 : job.factor[t.limb];
  for (int64_t row = 0; row < t.rows; row += pool.h) {
    const auto* base = packed + row * p.stride_h * plan.pitch;
    int64_t* out = y + row / pool.h * stored_w * p.stream;
    if (plan.flat) {
      const int64_t run = p.out_w * p.stream;
      for (int64_t i = 0; i < pool.h; ++i) {
        run_columns<P, kMid>(job, t, base + i * p.stride_h * plan.pitch, run, sums, run, i > 0, m);
      }
      for (int64_t o = 0; o < outputs; ++o) {
        finish_windows(sums + o * run, stored_w, pool.w, p.stream, factor, out + o * plane, m);
      }
      continue;
    }
    for (int64_t w = 0; w < stored_w; ++w) {
      for (int64_t i = 0; i < pool.h; ++i) {
        for (int64_t j = 0; j < pool.w; ++j) {
          const auto* from = base + i * p.stride_h * plan.pitch + (w * pool.w + j) * plan.block_s;
          run_columns<P, kMid>(job, t, from, t.streams, sums, plan.block_s, i + j > 0, m);
        }
      }
      for (int64_t o = 0; o < outputs; ++o) {
        finish_windows(sums + o * plan.block_s, 1, 1, t.streams, factor, out + o * plane + w * p.stream, m);
      }
    }
  }
}

template <class P, bool kMid>
inline void run_rows(const ConvJob& job, const ConvTask& t, const typename P::Element* packed, int64_t* y,
                     const ModV& m) {
  const ConvPlan& plan = job.plan;
  const ConvParams& p = plan.p;
  const int64_t plane = p.out_h * p.out_w * p.stream;
  for (int64_t row = 0; row < t.rows; ++row) {
    const auto* base = packed + row * p.stride_h * plan.pitch;
    int64_t* out = y + row * p.out_w * p.stream;
    if (plan.flat) {
      run_columns<P, kMid>(job, t, base, p.out_w * p.stream, out, plane, false, m);
    } else {
      for (int64_t w = 0; w < p.out_w; ++w) {
        run_columns<P, kMid>(job, t, base + w * plan.block_s, t.streams, out + w * p.stream, plane, false, m);
      }
    }
  }
}

template <class P, bool kMid>
inline void run_task(const ConvJob& job, int64_t task, std::byte* scratch) {
  const ConvPlan& plan = job.plan;
  const ConvParams& p = plan.p;
  const ConvTask t = locate(plan, task);
  const ModV m = make_modv(job.moduli[t.limb]);
  const Raw bad = pack_input<P>(job, t, scratch, m, zero_raw());
  if (any_bad(bad)) {
    job.bad->seen.store(true);
    return;
  }
  const auto* packed = reinterpret_cast<const typename P::Element*>(scratch);
  const int64_t row_size = p.out_w / plan.pool.w * p.stream;
  const int64_t channel0 = t.limb * p.out_channels + t.group * (p.out_channels / p.groups);
  const int64_t row0 = channel0 * (p.out_h / plan.pool.h) + t.row0 / plan.pool.h;
  int64_t* y = job.y + row0 * row_size + t.s0;
  if (plan.pooled) {
    run_windows<P, kMid>(job, t, packed, reinterpret_cast<int64_t*>(scratch + plan.sums_offset), y, m);
  } else {
    run_rows<P, kMid>(job, t, packed, y, m);
  }
}

inline void conv2d_task(const ConvJob& job, int64_t task, std::byte* scratch) {
  switch (job.plan.path) {
    case Path::kInt16:
      run_task<Int16Path, false>(job, task, scratch);
      return;
    case Path::kDouble:
      run_task<DoublePath, false>(job, task, scratch);
      return;
    case Path::kInt64:
      run_task<Int64Path, false>(job, task, scratch);
      return;
    case Path::kInt64Mid:
      run_task<Int64Path, true>(job, task, scratch);
      return;
  }
}
