// Convolution over residues for one instruction set: pack the input rows of a task, run the microkernel, finish.
// Included inside the instruction set's namespace after its simd_*.h and before conv_task_body.h, where tasks run.
//
// A task owns one limb, one channel group, one block of streams and one band of output rows. Packing writes the
// padded input rows it needs so that every tap of every output is a plain offset (fill_offsets) and every vector is
// full for any mix of width and stream: runs of (column, stream) are contiguous.

struct ConvTask {
  int64_t limb, group, s0, streams, row0, rows;  // rows: output rows row0 .. row0 + rows - 1
};

inline ConvTask locate(const ConvPlan& plan, int64_t task) {
  ConvTask t;
  const int64_t band = task % plan.bands;
  task /= plan.bands;
  const int64_t block = task % plan.blocks_s;
  task /= plan.blocks_s;
  t.group = task % plan.p.groups;
  t.limb = task / plan.p.groups;
  t.s0 = block * plan.block_s;
  t.streams = plan.p.stream - t.s0 < plan.block_s ? plan.p.stream - t.s0 : plan.block_s;
  t.row0 = band * plan.band_rows;
  t.rows = plan.p.out_h - t.row0 < plan.band_rows ? plan.p.out_h - t.row0 : plan.band_rows;
  return t;
}

template <class To>
inline void convert_one(To* to, Raw x) {
  if constexpr (sizeof(To) == 4) {
    narrow(to, x);
  } else {
    widen(to, x);
  }
}
template <class To>
inline void convert_one(To* to, Raw x, int64_t n) {
  if constexpr (sizeof(To) == 4) {
    narrow(to, x, n);
  } else {
    widen(to, x, n);
  }
}

// n residues to the path's element type, checking their range on the way.
template <class To>
inline Raw convert_run(const int64_t* from, To* to, int64_t n, const ModV& m, Raw bad) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Raw x = load_raw(from + i);
    bad = mark_bad(bad, x, m);
    convert_one(to + i, x);
  }
  if (i < n) {
    const Raw x = load_raw(from + i, n - i);
    bad = mark_bad(bad, x, m);
    convert_one(to + i, x, n - i);
  }
  return bad;
}

// One padded row of one channel in [phase][position][stream] order; `row` counts from the band's first padded row.
template <class To>
inline Raw fill_row(const ConvJob& job, const ConvTask& t, int64_t channel, int64_t row, To* to, const ModV& m,
                    Raw bad) {
  const ConvPlan& plan = job.plan;
  const ConvParams& p = plan.p;
  const int64_t h = t.row0 * p.stride_h + row - p.padding_h;
  if (h < 0 || h >= p.height) {
    for (int64_t i = 0; i < plan.pitch; ++i) to[i] = To{0};
    return bad;
  }
  const int64_t* from = job.x + (((t.limb * p.in_channels + channel) * p.height + h) * p.width) * p.stream + t.s0;
  if (p.stride_w == 1 && plan.flat) {
    const int64_t edge = p.padding_w * plan.block_s;
    const int64_t inner = p.width * p.stream;
    for (int64_t i = 0; i < edge; ++i) to[i] = To{0};
    bad = convert_run(from, to + edge, inner, m, bad);
    for (int64_t i = edge + inner; i < plan.pitch; ++i) to[i] = To{0};
    return bad;
  }
  for (int64_t column = 0; column < plan.phases * plan.positions; ++column) {
    To* cell = to + ((column % plan.phases) * plan.positions + column / plan.phases) * plan.block_s;
    const int64_t w = column - p.padding_w;
    if (w < 0 || w >= p.width) {
      for (int64_t i = 0; i < plan.block_s; ++i) cell[i] = To{0};
    } else {
      bad = convert_run(from + w * p.stream, cell, t.streams, m, bad);
    }
  }
  return bad;
}

template <class P>
inline Raw pack_input(const ConvJob& job, const ConvTask& t, std::byte* scratch, const ModV& m, Raw bad) {
  const ConvPlan& plan = job.plan;
  const ConvParams& p = plan.p;
  const int64_t channels = p.in_channels / p.groups;
  const int64_t channel0 = t.group * channels;
  const int64_t rows = (t.rows - 1) * p.stride_h + (p.kernel_h - 1) * p.dilation_h + 1;
  auto* packed = reinterpret_cast<typename P::Element*>(scratch);
  if constexpr (sizeof(typename P::Element) == 4) {
    auto* low = packed;
    auto* high = packed + plan.packed_elements;
    int32_t* first_row = high + plan.packed_elements;
    int32_t* second_row = first_row + plan.pitch + 64;
    for (int64_t plane = 0; plane < plan.planes; ++plane) {
      const int64_t c = channel0 + (plan.pair_rows ? plane : 2 * plane);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t other_row = row + (plan.pair_rows ? p.dilation_h : 0);
        const int64_t other_channel = c + (plan.pair_rows ? 0 : 1);
        const bool paired = other_row < rows && other_channel < channel0 + channels;
        bad = fill_row(job, t, c, row, first_row, m, bad);
        if (paired) bad = fill_row(job, t, other_channel, other_row, second_row, m, bad);
        const int64_t base = (plane * plan.rows + row) * plan.pitch;
        // The last vector of a row runs into the next one, which is written later, or into the slack.
        for (int64_t i = 0; i < plan.pitch; i += P::kColumns) {
          pack_halves(first_row + i, paired ? second_row + i : nullptr, low + base + i, high + base + i);
        }
      }
    }
  } else {
    for (int64_t plane = 0; plane < plan.planes; ++plane) {
      for (int64_t row = 0; row < rows; ++row) {
        bad = fill_row(job, t, channel0 + plane, row, packed + (plane * plan.rows + row) * plan.pitch, m, bad);
      }
    }
  }
  return bad;
}

// What follows the sum for one output channel: bias, then the polynomial by Horner's rule.
struct Epilogue {
  Vr bias;
  const int64_t* poly;  // degree + 1 residues or null
  int64_t degree;
};

// n lazy residues -> n lazy values of the polynomial. Step by step over all vectors, so that their chains overlap.
template <int n>
inline void horner(Vr (&x)[n], const int64_t* coefficients, int64_t degree, const ModV& m) {
  Vr r[n];
  int64_t i = degree - 1;
  const Vr c = set_residue(coefficients[i]);
  if (coefficients[degree] == 1) {  // a monic polynomial, a square above all, saves one product
#pragma GCC unroll 8
    for (int v = 0; v < n; ++v) r[v] = add_lazy(x[v], c);
  } else {
    const Vr leading = set_residue(coefficients[degree]);
#pragma GCC unroll 8
    for (int v = 0; v < n; ++v) r[v] = mul_add_lazy(leading, x[v], c, m);
  }
  if (degree == 1) {  // x + c alone may have left (-b, b)
#pragma GCC unroll 8
    for (int v = 0; v < n; ++v) r[v] = reduce_lazy(r[v], m);
  }
  for (--i; i >= 0; --i) {
    const Vr next = set_residue(coefficients[i]);
#pragma GCC unroll 8
    for (int v = 0; v < n; ++v) r[v] = mul_add_lazy(r[v], x[v], next, m);
  }
#pragma GCC unroll 8
  for (int v = 0; v < n; ++v) x[v] = r[v];
}

// Sums of kTile output channels over kVectors vectors of columns, starting at `packed`. The sums are plain local
// vectors, fully unrolled, so that the compiler keeps every one of them in a register; P::kPlanes is 2 for 16-bit
// halves.
template <class P, bool kMid>
inline void microkernel(const ConvJob& job, const typename P::Element* packed, const typename P::Element* weight,
                        const ModV& m, typename P::Vector (&out)[kTile][kVectors][P::kPlanes]) {
  const ConvPlan& plan = job.plan;
  typename P::Vector acc[kTile][kVectors][P::kPlanes];
#pragma GCC unroll 8
  for (int64_t o = 0; o < kTile; ++o) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (int64_t k = 0; k < P::kPlanes; ++k) acc[o][v][k] = P::zero();
    }
  }
  const int64_t* offsets = job.offsets;
  const int64_t high = plan.packed_elements;
  const int64_t taps = plan.taps;
  int64_t tap = 0;
  while (tap < taps) {
    int64_t stop = taps;
    if (kMid && stop - tap > plan.taps_per_reduction) stop = tap + plan.taps_per_reduction;
    for (; tap < stop; ++tap) {
      const typename P::Element* x = packed + offsets[tap];
      const typename P::Element* w = weight + tap * kTile;
      typename P::Vector data[kVectors][P::kPlanes];
#pragma GCC unroll 8
      for (int64_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
        for (int64_t k = 0; k < P::kPlanes; ++k) data[v][k] = P::load(x + v * P::kColumns + k * high);
      }
#pragma GCC unroll 8
      for (int64_t o = 0; o < kTile; ++o) {
        const typename P::Weight q = P::weight(w + o);
#pragma GCC unroll 8
        for (int64_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
          for (int64_t k = 0; k < P::kPlanes; ++k) acc[o][v][k] = P::multiply_add(acc[o][v][k], data[v][k], q);
        }
      }
    }
    if constexpr (kMid) {
      for (int64_t o = 0; o < kTile; ++o) {
        for (int64_t v = 0; v < kVectors; ++v) {
          acc[o][v][0] = P::restart(lift(P::finish(acc[o][v], 0, set_residue(0), m), m));
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int64_t o = 0; o < kTile; ++o) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (int64_t k = 0; k < P::kPlanes; ++k) out[o][v][k] = acc[o][v][k];
    }
  }
}

// Finishes one output channel of a microkernel and stores the first `count` columns, or adds them to what is there.
template <class P, bool kAdd>
inline void finish_run(const typename P::Vector (&acc)[kVectors][P::kPlanes], const Epilogue& e, int64_t count,
                       int64_t* to, const ModV& m) {
  constexpr int kParts = static_cast<int>(P::kColumns / kLanes);
  constexpr int n = static_cast<int>(kVectors) * kParts;
  Vr r[n];
#pragma GCC unroll 8
  for (int v = 0; v < n; ++v) r[v] = P::finish(acc[v / kParts], v % kParts, e.bias, m);
  if (e.poly != nullptr) horner(r, e.poly, e.degree, m);
  if (count >= n * kLanes) {
#pragma GCC unroll 8
    for (int v = 0; v < n; ++v) {
      Vr sum = lift(r[v], m);
      if constexpr (kAdd) sum = add_lazy(sum, to_residue(load_raw(to + v * kLanes)));
      store(to + v * kLanes, sum);
    }
    return;
  }
  for (int v = 0; v < n && v * kLanes < count; ++v) {
    const int64_t left = count - v * kLanes < kLanes ? count - v * kLanes : kLanes;
    Vr sum = lift(r[v], m);
    if constexpr (kAdd) sum = add_lazy(sum, to_residue(load_raw(to + v * kLanes, left)));
    store(to + v * kLanes, sum, left);
  }
}

// One run of `columns` contiguous outputs for all output channels of the group, `channel_step` entries apart at `to`;
// with `add` they are added to what is there.
template <class P, bool kMid>
inline void run_columns(const ConvJob& job, const ConvTask& t, const typename P::Element* packed, int64_t columns,
                        int64_t* to, int64_t channel_step, bool add, const ModV& m) {
  const ConvPlan& plan = job.plan;
  const ConvParams& p = plan.p;
  const auto* weights = static_cast<const typename P::Element*>(job.packed_weight);
  const int64_t outputs = p.out_channels / p.groups;
  const int64_t tiles = (outputs + kTile - 1) / kTile;
  constexpr int64_t kStep = kVectors * P::kColumns;
  for (int64_t j = 0; j < columns; j += kStep) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      typename P::Vector acc[kTile][kVectors][P::kPlanes];
      microkernel<P, kMid>(job, packed + j, weights + (t.group * tiles + tile) * plan.taps * kTile, m, acc);
      const int64_t live = outputs - tile * kTile < kTile ? outputs - tile * kTile : kTile;
      for (int64_t o = 0; o < live; ++o) {
        const int64_t in_group = tile * kTile + o;
        const int64_t channel = t.group * outputs + in_group;
        Epilogue e;
        e.bias = set_residue(job.bias == nullptr ? 0 : job.bias[t.limb * p.out_channels + channel]);
        e.degree = p.poly_degree;
        const int64_t table_rows = p.poly_channel_stride == 0 ? 1 : p.out_channels;
        e.poly = job.poly == nullptr
                     ? nullptr
                     : job.poly + t.limb * table_rows * (p.poly_degree + 1) + channel * p.poly_channel_stride;
        int64_t* const run = to + in_group * channel_step + j;
        if (add) {
          finish_run<P, true>(acc[o], e, columns - j, run, m);
        } else {
          finish_run<P, false>(acc[o], e, columns - j, run, m);
        }
      }
    }
  }
}

// Weights in the order the microkernel reads them: [group][tile][tap][kTile], absent outputs and absent second
// factors zero.
template <class Element>
inline void pack_weight_as(const ConvJob& job, Element* to) {
  const ConvPlan& plan = job.plan;
  const ConvParams& p = plan.p;
  const int64_t outputs = p.out_channels / p.groups;
  const int64_t channels = p.in_channels / p.groups;
  const int64_t tiles = (outputs + kTile - 1) / kTile;
  const bool halves = plan.path == Path::kInt16;
  const int64_t row_step = plan.pair_rows ? 2 : 1;
  for (int64_t group = 0; group < p.groups; ++group) {
    for (int64_t o = 0; o < tiles * kTile; ++o) {
      const int64_t tile = o / kTile;
      Element* cell = to + (group * tiles + tile) * plan.taps * kTile + o % kTile;
      const int64_t* w = job.weight + (group * outputs + o) * channels * p.kernel_h * p.kernel_w;
      int64_t tap = 0;
      for (int64_t plane = 0; plane < plan.planes; ++plane) {
        const int64_t c = halves && !plan.pair_rows ? 2 * plane : plane;
        for (int64_t i = 0; i < p.kernel_h; i += row_step) {
          for (int64_t j = 0; j < p.kernel_w; ++j, ++tap) {
            if (o >= outputs) {
              cell[tap * kTile] = Element{0};
              continue;
            }
            const int64_t q = w[(c * p.kernel_h + i) * p.kernel_w + j];
            if constexpr (sizeof(Element) == 4) {
              const int64_t c2 = plan.pair_rows ? c : c + 1;
              const int64_t i2 = plan.pair_rows ? i + 1 : i;
              const int64_t q2 = c2 < channels && i2 < p.kernel_h ? w[(c2 * p.kernel_h + i2) * p.kernel_w + j] : 0;
              cell[tap * kTile] =
                  static_cast<int32_t>((static_cast<uint32_t>(q) & 0xffffu) | (static_cast<uint32_t>(q2) << 16));
            } else {
              cell[tap * kTile] = static_cast<Element>(q);
            }
          }
        }
      }
    }
  }
}

inline void pack_weight(const ConvJob& job, void* packed) {
  switch (job.plan.path) {
    case Path::kInt16:
      pack_weight_as(job, static_cast<int32_t*>(packed));
      return;
    case Path::kDouble:
      pack_weight_as(job, static_cast<double*>(packed));
      return;
    default:
      pack_weight_as(job, static_cast<int64_t*>(packed));
  }
}
