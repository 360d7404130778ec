// The tiled convolution, for any arithmetic that keeps one number a residue. conv2d_plan.h says how work is cut.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "conv2d_block.cuh"
#include "launch.cuh"

namespace mcfhe::cuda {

// Doubles: |sum| <= 2^22 * (b - 1) < 2^53, so every FMA is exact.
struct DoublePath {
  using Value = double;
  using Sum = double;
  static constexpr bool kMidSum = false;
  __device__ static double residue(int64_t r) { return static_cast<double>(static_cast<uint32_t>(r)); }
  __device__ static double weight(int64_t q) { return static_cast<double>(static_cast<int32_t>(q)); }
  __device__ static double add(double sum, double w, double r) { return __fma_rn(w, r, sum); }
  __device__ static uint32_t reduce(double sum, const Limb& m) { return reduce_real(sum, m); }
};

// One 32 x 32 + 64 multiply-add a product: residues and weights fit int32. |sum| <= 2^32 * (b - 1).
struct Int64Path {
  using Value = int32_t;
  using Sum = int64_t;
  static constexpr bool kMidSum = false;
  __device__ static int32_t residue(int64_t r) { return static_cast<int32_t>(r); }
  __device__ static int32_t weight(int64_t q) { return static_cast<int32_t>(q); }
  __device__ static int64_t add(int64_t sum, int32_t w, int32_t r) { return sum + static_cast<int64_t>(w) * r; }
  __device__ static uint32_t reduce(int64_t sum, const Limb& m) { return reduce_bounded(sum, m); }
};

// Int64Path with a reduction every few products.
struct Int64MidSumPath : Int64Path {
  static constexpr bool kMidSum = true;
  __device__ static uint32_t reduce(int64_t sum, const Limb& m) { return reduce_any(sum, m); }
};

// The patch of `channels` channels from `channel0` on, as Path values; entries outside the image are 0.
// kWidth = 2: two neighbouring stream entries at once, with 16-byte accesses.
template <typename Path, int kWidth>
__device__ __forceinline__ void stage_patch(const ConvParams& p, const ConvPlan& t, const BlockTile& tile,
                                            const int64_t* __restrict__ x, int64_t channel0, int channels,
                                            typename Path::Value* patch) {
  using Value = typename Path::Value;
  struct alignas(kWidth * sizeof(Value)) Pack {
    Value v[kWidth];
  };
  using Load = std::conditional_t<kWidth == 2, longlong2, int64_t>;
  constexpr int kBatch = 4;  // loads in flight a thread
  const PatchSource source(p, t, tile);
  const int64_t plane = p.height * source.row_size;
  const int64_t* const from = x + (tile.limb * p.in_channels + channel0) * plane;
  const int loads = channels * t.patch_rows * t.row_units.divisor;

  for (int load0 = static_cast<int>(threadIdx.x); load0 < loads; load0 += kBatch * kConvThreads) {
    Load loaded[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int load = load0 + i * kConvThreads;
      const int row = t.row_units.quotient(load);
      const int channel = t.rows_per_unit.quotient(row);
      const int col = (load - row * t.row_units.divisor) * kWidth;
      const int64_t index = load < loads ? source.index(p, t, row - channel * t.patch_rows, col) : -1;
      loaded[i] = Load{};
      if (index >= 0) loaded[i] = __ldg(reinterpret_cast<const Load*>(from + channel * plane + index));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int load = load0 + i * kConvThreads;
      if (load >= loads) continue;
      if constexpr (kWidth == 2) {
        reinterpret_cast<Pack*>(patch)[load] = Pack{{Path::residue(loaded[i].x), Path::residue(loaded[i].y)}};
      } else {
        patch[load] = Path::residue(loaded[i]);
      }
    }
  }
}

// weight[out][k] of the block's channels -> staged[k * out_block + out], 0 beyond the group's last channel. Threads
// run over 4 neighbouring k, then channels: 32-byte global sectors, few shared-memory conflicts.
template <typename Path>
__device__ __forceinline__ void stage_weight(const ConvParams& p, const ConvPlan& t, const BlockTile& tile,
                                             int out_block, const int64_t* __restrict__ weight, int64_t channel0,
                                             int taps, typename Path::Value* staged) {
  const int64_t window = p.kernel_h * p.kernel_w;
  const int64_t row_size = p.in_channels / p.groups * window;
  const int64_t outs = p.out_channels / p.groups;
  const int units = (taps + 3) / 4 * 4 * out_block;
  for (int unit = static_cast<int>(threadIdx.x); unit < units; unit += kConvThreads) {
    const int strip = unit / 4;
    const int out = strip & (out_block - 1);
    const int k = (strip >> t.out_shift) * 4 + unit % 4;
    if (k >= taps) continue;
    const int64_t o = tile.out_tile * out_block + out;
    const int64_t q = o < outs ? __ldg(weight + (tile.group * outs + o) * row_size + channel0 * window + k) : 0;
    staged[k * out_block + out] = Path::weight(q);
  }
}

// Where tap k of a chunk lies in the patch, from a position's first entry.
__device__ __forceinline__ void stage_taps(const ConvParams& p, const ConvPlan& t, int32_t* taps) {
  const int kernel_w = static_cast<int>(p.kernel_w);
  const int window = static_cast<int>(p.kernel_h) * kernel_w;
  for (int k = static_cast<int>(threadIdx.x); k < t.chunk_units * window; k += kConvThreads) {
    const int channel = k / window;
    const int kh = (k - channel * window) / kernel_w;
    const int kw = k - channel * window - kh * kernel_w;
    const int row = kh * static_cast<int>(p.dilation_h);
    taps[k] = channel * t.patch_size + row * t.patch_width + kw * static_cast<int>(p.dilation_w) * t.stream;
  }
}

// kCount values from 16-byte aligned shared memory, the same address for a whole warp.
template <typename Value, int kCount>
__device__ __forceinline__ void load_broadcast(const Value* from, Value (&to)[kCount]) {
  constexpr int kPack = 16 / static_cast<int>(sizeof(Value));
  static_assert(kCount % kPack == 0);
  struct alignas(16) Pack {
    Value v[kPack];
  };
#pragma unroll
  for (int i = 0; i < kCount / kPack; ++i) {
    const Pack pack = reinterpret_cast<const Pack*>(from)[i];
#pragma unroll
    for (int j = 0; j < kPack; ++j) to[i * kPack + j] = pack.v[j];
  }
}

// Blocks a multiprocessor should hold: bounds registers at 255, 168, 96 (128 with reductions in the loop) and 64 a
// thread.
constexpr int conv_min_blocks(int outputs, bool mid_sum) {
  return outputs >= 64 ? 2 : outputs >= 32 ? 3 : outputs >= 16 ? (mid_sum ? 4 : 5) : 8;
}

// A thread holds kOut channels of kPos positions: kPos / kWindow windows of kWindow outputs that are summed before they
// are stored; kWindow = 1 is no pool.
template <typename Path, int kOut, int kPos, int kWindow>
__global__ void __launch_bounds__(kConvThreads, conv_min_blocks(kOut* kPos, Path::kMidSum))
    conv2d_tiled_kernel(const ConvParams p, const ConvPlan t, const int32_t reduce_every,
                        const int64_t* __restrict__ x,       // [L, C, H, W, S]
                        const int64_t* __restrict__ weight,  // [O, C / groups, KH, KW]
                        const int64_t* __restrict__ bias,    // [L, O] or null
                        const PolyTable poly,                // [L, 1 or O, degree + 1]
                        const int64_t* __restrict__ factor,  // [L] or null; of the pool
                        const int64_t* __restrict__ moduli,  // [L]
                        int64_t* __restrict__ y) {           // [L, O, OH, OW, S], pooled
  using Value = typename Path::Value;
  using Sum = typename Path::Sum;
  MCFHE_DYNAMIC_SHARED(shared);
  __shared__ Limb limb_slot;
  Value* const s_weight = reinterpret_cast<Value*>(shared);
  Value* const s_patch = reinterpret_cast<Value*>(shared + t.patch_offset);
  int32_t* const s_taps = reinterpret_cast<int32_t*>(shared + t.taps_offset);

  const BlockTile tile = locate_block(t);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int out_block = t.out_warps * kOut;
  const int out0 = warp % t.out_warps * kOut;
  const int position0 = warp / t.out_warps * kWarpSize + thread % kWarpSize;
  const int position_step = kConvThreads / t.out_warps;
  const int window = static_cast<int>(p.kernel_h * p.kernel_w);
  const int64_t channels = p.in_channels / p.groups;

  int entry[kPos];
#pragma unroll
  for (int j = 0; j < kPos; ++j) {
    entry[j] = patch_entry<kWindow>(p, t, position0 + j / kWindow * position_step, j % kWindow);
  }
  Sum sum[kOut][kPos] = {};

  // The division in make_limb overlaps the loads of the other warps.
  if (thread == kConvThreads - 1) limb_slot = make_limb(__ldg(moduli + tile.limb));
  stage_taps(p, t, s_taps);
  [[maybe_unused]] int pending = 0;
  for (int64_t c0 = 0; c0 < channels; c0 += t.chunk_units) {
    const int count = static_cast<int>(channels - c0 < t.chunk_units ? channels - c0 : t.chunk_units);
    const int taps = count * window;
    if (c0 > 0) __syncthreads();
    stage_weight<Path>(p, t, tile, out_block, weight, c0, taps, s_weight);
    if (t.pairs != 0) {
      stage_patch<Path, 2>(p, t, tile, x, tile.group * channels + c0, count, s_patch);
    } else {
      stage_patch<Path, 1>(p, t, tile, x, tile.group * channels + c0, count, s_patch);
    }
    __syncthreads();
    for (int k = 0; k < taps; ++k) {
      const Value* const at = s_patch + s_taps[k];
      Value w[kOut];
      load_broadcast(s_weight + k * out_block + out0, w);
      Value r[kPos];
#pragma unroll
      for (int j = 0; j < kPos; ++j) r[j] = at[entry[j]];
#pragma unroll
      for (int i = 0; i < kOut; ++i) {
#pragma unroll
        for (int j = 0; j < kPos; ++j) sum[i][j] = Path::add(sum[i][j], w[i], r[j]);
      }
      if constexpr (Path::kMidSum) {
        if (++pending == reduce_every) {
          pending = 0;
#pragma unroll
          for (int i = 0; i < kOut; ++i) {
#pragma unroll
            for (int j = 0; j < kPos; ++j) sum[i][j] = static_cast<Sum>(Path::reduce(sum[i][j], limb_slot));
          }
        }
      }
    }
  }

  const Limb limb = limb_slot;
  const int64_t outs = p.out_channels / p.groups;
  const int64_t plane = t.stored_h * t.stored_w * p.stream;
  const uint32_t scale = kWindow == 1 || factor == nullptr ? 1u : static_cast<uint32_t>(__ldg(factor + tile.limb));
#pragma unroll
  for (int i = 0; i < kOut; ++i) {
    const int64_t in_group = tile.out_tile * out_block + out0 + i;
    if (in_group >= outs) break;
    const int64_t o = tile.group * outs + in_group;
    uint32_t v[kPos];
#pragma unroll
    for (int j = 0; j < kPos; ++j) v[j] = Path::reduce(sum[i][j], limb);
    finish_outputs(p, bias, poly, tile.limb, o, limb, v);
    int64_t* const to = y + (tile.limb * p.out_channels + o) * plane;
#pragma unroll
    for (int j = 0; j < kPos / kWindow; ++j) {
      const int64_t index = output_index(p, t, tile, position0 + j * position_step);
      if (index >= 0) to[index] = static_cast<int64_t>(pool_window<kWindow>(v, j * kWindow, scale, limb));
    }
  }
}

}  // namespace mcfhe::cuda
