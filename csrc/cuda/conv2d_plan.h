// How a convolution is cut into blocks. Host side, torch-free.
//
// A block of kConvThreads threads computes an output tile of rows x cols x stream positions for out_warps * thread.out
// channels of one limb. It walks over the input channels in chunks; for each it stages in shared memory the patch of
// the input that the tile reads, and the weights, then runs over the taps. The stream axis is innermost: either the
// tile holds all of it, so that a patch row is one contiguous run of (column, stream), or a power-of-two run of it.
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

// Outputs one thread holds.
struct ThreadTile {
  int out;
  int positions;
};

struct ConvPlan {
  int32_t rows, cols, stream;       // output tile
  int32_t stream_shift;             // stream = 1 << stream_shift; -1: the whole stream axis
  int32_t patch_rows, patch_width;  // staged input of one channel: rows x (columns * stream)
  int32_t chunk_channels;
  int32_t out_warps;                   // 1, 2 or 4 warps side by side in output channels, the rest in positions
  int32_t pairs;                       // 1: every staged run is even and 16-byte aligned
  SmallDiv row_units;                  // by the loads in a patch row
  SmallDiv rows_per_channel;           // by patch_rows
  SmallDiv tile_row;                   // by cols * stream
  SmallDiv tile_col;                   // by stream
  int64_t out_tiles, out_tiles_group;  // tiles over output channels: all, and in one group
  int64_t col_tiles, row_tiles, stream_tiles;
  int64_t blocks;  // per limb; 0: no tile fits
  int64_t patch_offset, taps_offset;  // bytes into shared memory; the weights come first
  size_t shared_bytes;
  double cycles;  // estimate
};

// Bytes of the chunk's parts in shared memory, each padded to 16.
struct ConvShared {
  int64_t weight, patch, taps;

  ConvShared(int64_t channels, int64_t window, int64_t out_block, int64_t patch_size, int64_t value_bytes)
      : weight(pad(channels * window * out_block * value_bytes)),
        patch(pad(channels * patch_size * value_bytes)),
        taps(pad(channels * window * int64_t{sizeof(int32_t)})) {}

  static int64_t pad(int64_t bytes) { return (bytes + 15) / 16 * 16; }
  int64_t total() const { return weight + patch + taps; }
};

namespace detail {

inline int64_t tiles(int64_t size, int64_t tile) { return (size + tile - 1) / tile; }

// Input rows or columns that `count` outputs read.
inline int64_t extent(int64_t count, int64_t stride, int64_t kernel, int64_t dilation) {
  return (count - 1) * stride + (kernel - 1) * dilation + 1;
}

// Cycles of one multiprocessor for one tap of a tile: 64 double FMAs a cycle, or 128 bytes a cycle out of shared
// memory for a warp's own positions, a broadcast of 16 bytes of weights, and the tap's offset.
inline double tap_cycles(ThreadTile thread, int64_t value_bytes) {
  const double multiply = thread.out * thread.positions * 32.0 / 64.0;
  const double shared = static_cast<double>(thread.positions * value_bytes) / 4.0 +
                        static_cast<double>(thread.out * value_bytes) / 16.0 + 1.0;
  return kConvWarps * std::max(multiply, shared);
}

// Fills `plan` for one choice of tile; false when its patch does not fit.
inline bool try_tile(const ConvParams& p, ThreadTile thread, int64_t value_bytes, int64_t out_warps, int64_t stream,
                     bool split, int64_t cols, int64_t processors, ConvPlan& plan) {
  constexpr double kStagePerResidue = 0.25;  // cycles of load, convert and store
  constexpr double kReducePerOutput = 0.3;
  const int64_t positions = kConvThreads / out_warps * thread.positions;
  const int64_t out_block = out_warps * thread.out;
  const int64_t rows = std::min(p.out_h, positions / (cols * stream));
  const int64_t patch_rows = extent(rows, p.stride_h, p.kernel_h, p.dilation_h);
  const int64_t patch_cols = extent(cols, p.stride_w, p.kernel_w, p.dilation_w);
  // Sizes beyond shared memory are refused before they are multiplied.
  if (rows < 1 || patch_rows > kConvSharedBytes || patch_cols > kConvSharedBytes) return false;
  const int64_t window = p.kernel_h * p.kernel_w;
  const int64_t patch_size = patch_rows * patch_cols * stream;
  if (patch_size > kConvSharedBytes) return false;
  const auto shared = [&](int64_t channels) {
    return ConvShared(channels, window, out_block, patch_size, value_bytes).total();
  };
  if (shared(1) > kConvSharedBytes) return false;

  const int64_t channels = p.in_channels / p.groups;
  const int64_t fit = std::clamp<int64_t>((kConvSharedBytes - 48) / (shared(2) - shared(1)), 1, channels);
  const int64_t chunk = tiles(channels, tiles(channels, fit));  // equal chunks
  const int64_t out_tiles_group = tiles(p.out_channels / p.groups, out_block);
  const int64_t row_tiles = tiles(p.out_h, rows);
  const int64_t col_tiles = tiles(p.out_w, cols);
  const int64_t stream_tiles = tiles(p.stream, stream);
  const int64_t out_tiles = out_tiles_group * p.groups;
  const int64_t blocks = row_tiles * col_tiles * stream_tiles * out_tiles;

  const double short_run = split && stream < 16 ? 1.5 : 1.0;  // half-used cache lines
  const double per_channel = static_cast<double>(window) * tap_cycles(thread, value_bytes) +
                             kStagePerResidue * (static_cast<double>(patch_size) * short_run +
                                                 static_cast<double>(window * out_block));
  const double per_block = static_cast<double>(channels) * per_channel +
                           kReducePerOutput * static_cast<double>(positions * out_block);
  const double cycles = per_block * static_cast<double>(tiles(blocks * p.limbs, processors));
  if (plan.blocks != 0 && plan.cycles <= cycles) return true;

  plan.rows = static_cast<int32_t>(rows);
  plan.cols = static_cast<int32_t>(cols);
  plan.stream = static_cast<int32_t>(stream);
  plan.stream_shift = -1;
  for (int32_t shift = 0; split && (int64_t{1} << shift) <= stream; ++shift) plan.stream_shift = shift;
  plan.patch_rows = static_cast<int32_t>(patch_rows);
  plan.patch_width = static_cast<int32_t>(patch_cols * stream);
  plan.chunk_channels = static_cast<int32_t>(chunk);
  plan.out_warps = static_cast<int32_t>(out_warps);
  plan.pairs = p.stream % 2 == 0 && stream % 2 == 0 ? 1 : 0;
  plan.row_units = SmallDiv(patch_cols * stream / (plan.pairs + 1));
  plan.rows_per_channel = SmallDiv(patch_rows);
  plan.tile_row = SmallDiv(cols * stream);
  plan.tile_col = SmallDiv(stream);
  plan.out_tiles = out_tiles;
  plan.out_tiles_group = out_tiles_group;
  plan.col_tiles = col_tiles;
  plan.row_tiles = row_tiles;
  plan.stream_tiles = stream_tiles;
  plan.blocks = blocks;
  const ConvShared layout(chunk, window, out_block, patch_size, value_bytes);
  plan.patch_offset = layout.weight;
  plan.taps_offset = layout.weight + layout.patch;
  plan.shared_bytes = static_cast<size_t>(layout.total());
  plan.cycles = cycles;
  return true;
}

}  // namespace detail

// The cheapest tile by the estimate; plan.blocks == 0 when no patch fits shared memory.
inline ConvPlan plan_conv2d(const ConvParams& p, ThreadTile thread, int64_t value_bytes, int64_t processors) {
  ConvPlan plan{};
  const int64_t out_group = p.out_channels / p.groups;
  const int64_t out_warps = out_group > 2 * thread.out ? 4 : out_group > thread.out ? 2 : 1;
  const int64_t positions = kConvThreads / out_warps * thread.positions;
  const auto try_stream = [&](int64_t stream, bool split) {
    const int64_t most = std::min(p.out_w, positions / stream);
    for (int64_t cols = 1; cols < most; cols *= 2) {
      detail::try_tile(p, thread, value_bytes, out_warps, stream, split, cols, processors, plan);
    }
    detail::try_tile(p, thread, value_bytes, out_warps, stream, split, most, processors, plan);
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
