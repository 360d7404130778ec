// How a convolution is cut into blocks. Host side, torch-free.
//
// A block of kConvThreads threads computes an output tile of rows x cols x stream positions for some output channels of
// one limb. It walks over the input channels in chunks; for each it stages in shared memory the patch of the input that
// the tile reads, and the weights, then runs over the taps. The stream axis is innermost: either the tile holds all of
// it, so that a patch row is one contiguous run of (column, stream), or a power-of-two run of it.
//
// With a pool a stored position is a window of the convolution's outputs: the tile is one of windows, all outputs of a
// window belong to one thread, and the patch is what the windows read. Without one the window is a single output.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "fast_div.h"
#include "kernels/params.h"

namespace mcfhe::cuda {

inline constexpr int kConvThreads = 128;
inline constexpr int kConvWarps = kConvThreads / 32;
// Below the 48 KiB that need no opt-in, with room for the limb's constants. Four blocks fit an H100's 227 KiB.
inline constexpr int64_t kConvSharedBytes = 48 * 1024 - 128;

// What the planner needs to know of a kernel. A unit is what it stages and multiplies at a time: one input channel, or
// four packed into a word.
struct ConvModel {
  int64_t warp_out, warp_positions;  // outputs of one warp, before any pool
  int64_t channels_per_unit;
  int64_t patch_bytes;    // of one staged entry of one unit
  int64_t weight_bytes;   // of one unit's weight for one output
  int64_t taps_per_step;  // a chunk's taps are padded to a multiple
  int64_t patch_residue;  // a unit's patch is padded to this remainder modulo 8; 0 for no padding
  double tap_cycles;      // of one multiprocessor, for one tap of a block
};

struct ConvPlan {
  int32_t rows, cols, stream;       // stored tile
  int32_t stream_shift;             // stream = 1 << stream_shift; -1: the whole stream axis
  int32_t patch_rows, patch_width;  // staged input of one unit: rows x (columns * stream)
  int32_t patch_size;               // entries between the patches of two units
  int32_t chunk_units;
  int32_t out_warps;                   // 1, 2 or 4 warps side by side in output channels, the rest in positions
  int32_t out_shift;                   // output channels of a block: 1 << out_shift
  int32_t pool_h, pool_w;              // window of outputs behind a stored position
  int32_t pairs;                       // 1: every staged run is even and 16-byte aligned
  SmallDiv row_units;                  // by the loads in a patch row, two entries each with pairs
  SmallDiv rows_per_unit;              // by patch_rows
  SmallDiv tile_row;                   // by cols * stream
  SmallDiv tile_col;                   // by stream
  SmallDiv window_row;                 // by pool_w
  int64_t stored_h, stored_w;          // windows that fit the output
  int64_t out_tiles, out_tiles_group;  // tiles over output channels: all, and in one group
  int64_t col_tiles, row_tiles, stream_tiles;
  int64_t blocks;                     // per limb; 0: no tile fits
  int64_t patch_offset, taps_offset;  // bytes into shared memory; the weights come first
  size_t shared_bytes;
  double cycles;  // estimate
};

namespace detail {

inline int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }
inline int64_t round_up(int64_t size, int64_t step) { return tiles(size, step) * step; }

// Input rows or columns that `count` outputs read.
inline int64_t extent(int64_t count, int64_t stride, int64_t kernel, int64_t dilation) {
  return (count - 1) * stride + (kernel - 1) * dilation + 1;
}

// Bytes of a chunk's parts in shared memory, each padded to 16.
struct SharedLayout {
  int64_t weight, patch, taps;

  SharedLayout(const ConvModel& model, int64_t units, int64_t window, int64_t out_block, int64_t patch_size) {
    const int64_t all_taps = round_up(units * window, model.taps_per_step);
    weight = round_up(all_taps * out_block * model.weight_bytes, 16);
    patch = round_up(units * patch_size * model.patch_bytes, 16);
    taps = round_up(all_taps * int64_t{sizeof(int32_t)}, 16);
  }
  int64_t total() const { return weight + patch + taps; }
};

// One choice of tile.
struct TileChoice {
  int64_t out_warps, stream, cols;
  bool split;  // the tile holds a power-of-two run of the stream, not all of it
};

// Enters the choice into `plan` where it fits and is cheaper than what is there.
inline void try_tile(const ConvParams& p, PoolWindow pool, const ConvModel& model, const TileChoice& choice,
                     bool aligned, int64_t processors, ConvPlan& plan) {
  constexpr double kStageCycles = 0.25;  // load, convert and store one residue
  constexpr double kReduceCycles = 0.3;  // finish one output
  const int64_t outputs = kConvWarps / choice.out_warps * model.warp_positions;
  const int64_t positions = outputs / (pool.h * pool.w);
  const int64_t out_block = choice.out_warps * model.warp_out;
  const int64_t stored_h = p.out_h / pool.h;
  const int64_t stored_w = p.out_w / pool.w;
  const int64_t rows = std::min(stored_h, positions / (choice.cols * choice.stream));
  const int64_t patch_rows = extent(rows * pool.h, p.stride_h, p.kernel_h, p.dilation_h);
  const int64_t patch_cols = extent(choice.cols * pool.w, p.stride_w, p.kernel_w, p.dilation_w);
  // Sizes beyond shared memory are refused before they are multiplied.
  if (rows < 1 || patch_rows > kConvSharedBytes || patch_cols > kConvSharedBytes) return;
  if (p.kernel_h > kConvSharedBytes || p.kernel_w > kConvSharedBytes) return;
  const int64_t window = p.kernel_h * p.kernel_w;
  int64_t patch_size = patch_rows * patch_cols * choice.stream;
  if (model.patch_residue > 0) patch_size = round_up(patch_size - model.patch_residue, 8) + model.patch_residue;
  if (patch_size > kConvSharedBytes || window > kConvSharedBytes) return;
  const auto layout = [&](int64_t units) { return SharedLayout(model, units, window, out_block, patch_size); };
  if (layout(1).total() > kConvSharedBytes) return;

  const int64_t units = tiles(p.in_channels / p.groups, model.channels_per_unit);
  const int64_t unit_bytes =
      window * (out_block * model.weight_bytes + int64_t{sizeof(int32_t)}) + patch_size * model.patch_bytes;
  int64_t fit = std::clamp<int64_t>(kConvSharedBytes / unit_bytes, 1, units);
  while (layout(fit).total() > kConvSharedBytes) --fit;
  const int64_t chunk = tiles(units, tiles(units, fit));  // equal chunks
  const int64_t out_tiles_group = tiles(p.out_channels / p.groups, out_block);
  const int64_t out_tiles = out_tiles_group * p.groups;
  const int64_t row_tiles = tiles(stored_h, rows);
  const int64_t col_tiles = tiles(stored_w, choice.cols);
  const int64_t stream_tiles = tiles(p.stream, choice.stream);
  const int64_t blocks = row_tiles * col_tiles * stream_tiles * out_tiles;

  const double short_run = choice.split && choice.stream < 16 ? 1.5 : 1.0;  // half-used cache lines
  const double staged = static_cast<double>(patch_size) * short_run + static_cast<double>(window * out_block);
  const double per_unit = static_cast<double>(window) * model.tap_cycles +
                          kStageCycles * static_cast<double>(model.channels_per_unit) * staged;
  const double per_block =
      static_cast<double>(units) * per_unit + kReduceCycles * static_cast<double>(outputs * out_block);
  const double cycles = per_block * static_cast<double>(tiles(blocks * p.limbs, processors));
  if (plan.blocks != 0 && plan.cycles <= cycles) return;

  const SharedLayout shared = layout(chunk);
  plan.rows = static_cast<int32_t>(rows);
  plan.cols = static_cast<int32_t>(choice.cols);
  plan.stream = static_cast<int32_t>(choice.stream);
  plan.stream_shift = -1;
  for (int32_t shift = 0; choice.split && (int64_t{1} << shift) <= choice.stream; ++shift) plan.stream_shift = shift;
  plan.patch_rows = static_cast<int32_t>(patch_rows);
  plan.patch_width = static_cast<int32_t>(patch_cols * choice.stream);
  plan.patch_size = static_cast<int32_t>(patch_size);
  plan.chunk_units = static_cast<int32_t>(chunk);
  plan.out_warps = static_cast<int32_t>(choice.out_warps);
  plan.out_shift = 0;
  while (int64_t{1} << plan.out_shift < out_block) ++plan.out_shift;
  plan.pool_h = static_cast<int32_t>(pool.h);
  plan.pool_w = static_cast<int32_t>(pool.w);
  plan.pairs = aligned && p.stream % 2 == 0 && choice.stream % 2 == 0 ? 1 : 0;
  const int64_t load_width = plan.pairs == 1 && model.channels_per_unit == 1 ? 2 : 1;
  plan.row_units = SmallDiv(patch_cols * choice.stream / load_width);
  plan.rows_per_unit = SmallDiv(patch_rows);
  plan.tile_row = SmallDiv(choice.cols * choice.stream);
  plan.tile_col = SmallDiv(choice.stream);
  plan.window_row = SmallDiv(pool.w);
  plan.stored_h = stored_h;
  plan.stored_w = stored_w;
  plan.out_tiles = out_tiles;
  plan.out_tiles_group = out_tiles_group;
  plan.col_tiles = col_tiles;
  plan.row_tiles = row_tiles;
  plan.stream_tiles = stream_tiles;
  plan.blocks = blocks;
  plan.patch_offset = shared.weight;
  plan.taps_offset = shared.weight + shared.patch;
  plan.shared_bytes = static_cast<size_t>(shared.total());
  plan.cycles = cycles;
}

}  // namespace detail

// The cheapest tile by the estimate; plan.blocks == 0 when no patch fits shared memory. aligned: tensors are on 16
// bytes. pool.h * pool.w divides what a thread holds.
inline ConvPlan plan_conv2d(const ConvParams& p, PoolWindow pool, const ConvModel& model, bool aligned,
                            int64_t processors) {
  ConvPlan plan{};
  const int64_t out_group = p.out_channels / p.groups;
  const int64_t out_warps = out_group > 2 * model.warp_out ? 4 : out_group > model.warp_out ? 2 : 1;
  const int64_t positions = kConvWarps / out_warps * model.warp_positions / (pool.h * pool.w);
  const auto try_stream = [&](int64_t stream, bool split) {
    const int64_t most = std::min(p.out_w / pool.w, positions / stream);
    for (int64_t cols = 1; cols < most; cols *= 2) {
      detail::try_tile(p, pool, model, {out_warps, stream, cols, split}, aligned, processors, plan);
    }
    detail::try_tile(p, pool, model, {out_warps, stream, most, split}, aligned, processors, plan);
  };
  if (p.stream <= positions) try_stream(p.stream, false);
  // Long streams: runs of at least 64 bytes, shorter ones only where a large window leaves no room.
  for (int64_t stream = 8; stream <= std::min(p.stream, positions); stream *= 2) try_stream(stream, true);
  for (int64_t stream = 4; plan.blocks == 0 && stream >= 1; stream /= 2) {
    if (stream < p.stream) try_stream(stream, true);
  }
  return plan;
}

}  // namespace mcfhe::cuda
