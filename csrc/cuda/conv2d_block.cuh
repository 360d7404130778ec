// What the shared-memory convolutions have in common: where a block works, and which input it reads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "conv2d_plan.h"
#include "limb.cuh"
#include "poly.cuh"

namespace mcfhe::cuda {

struct BlockTile {
  int64_t limb;
  int64_t group, out_tile;      // tile of output channels, within the group
  int64_t row0, col0, stream0;  // first stored position
};

// Blocks that share input run next to each other: output channels first, then columns, rows and the stream.
__device__ __forceinline__ BlockTile locate_block(const ConvPlan& t) {
  const uint32_t out_tiles = static_cast<uint32_t>(t.out_tiles);
  const uint32_t out_tiles_group = static_cast<uint32_t>(t.out_tiles_group);
  const uint32_t col_tiles = static_cast<uint32_t>(t.col_tiles);
  const uint32_t row_tiles = static_cast<uint32_t>(t.row_tiles);
  const uint32_t out_tile = blockIdx.x % out_tiles;
  const uint32_t place = blockIdx.x / out_tiles;
  const uint32_t line = place / col_tiles;
  BlockTile tile;
  tile.limb = blockIdx.y;
  tile.group = out_tile / out_tiles_group;
  tile.out_tile = out_tile % out_tiles_group;
  tile.row0 = static_cast<int64_t>(line % row_tiles) * t.rows;
  tile.col0 = static_cast<int64_t>(place % col_tiles) * t.cols;
  tile.stream0 = static_cast<int64_t>(line / row_tiles) * t.stream;
  return tile;
}

// A position of the tile; row >= t.rows for those beyond it.
struct TilePosition {
  int row, col, s;
};

__device__ __forceinline__ TilePosition tile_position(const ConvPlan& t, int position) {
  const int row = t.tile_row.quotient(position);
  const int in_row = position - row * t.tile_row.divisor;
  const int col = t.tile_col.quotient(in_row);
  return {row, col, in_row - col * t.tile_col.divisor};
}

// The first patch entry that output `k` of a position's window reads; entry 0 for positions beyond the tile, which
// store nothing.
template <int kWindow>
__device__ __forceinline__ int patch_entry(const ConvParams& p, const ConvPlan& t, int position, int k) {
  const TilePosition at = tile_position(t, position);
  if (at.row >= t.rows) return 0;
  int row = at.row;
  int col = at.col;
  if constexpr (kWindow > 1) {
    const int window_row = t.window_row.quotient(k);
    row = row * t.pool_h + window_row;
    col = col * t.pool_w + k - window_row * t.pool_w;
  }
  return row * static_cast<int>(p.stride_h) * t.patch_width + col * static_cast<int>(p.stride_w) * t.stream + at.s;
}

// Index of a position in one stored plane, [OH, OW, S] without a pool; -1 outside it.
__device__ __forceinline__ int64_t output_index(const ConvParams& p, const ConvPlan& t, const BlockTile& tile,
                                                int position) {
  const TilePosition at = tile_position(t, position);
  const int64_t row = tile.row0 + at.row;
  const int64_t col = tile.col0 + at.col;
  const int64_t s = tile.stream0 + at.s;
  const bool inside = at.row < t.rows && row < t.stored_h && col < t.stored_w && s < p.stream;
  return inside ? (row * t.stored_w + col) * p.stream + s : -1;
}

// Finds the input entries that a patch holds.
struct PatchSource {
  int64_t row0, col0, stream0;  // of the patch, in the padded input
  int64_t row_size;             // entries in an input row

  __device__ __forceinline__ PatchSource(const ConvParams& p, const ConvPlan& t, const BlockTile& tile)
      : row0(tile.row0 * t.pool_h * p.stride_h - p.padding_h),
        col0(tile.col0 * t.pool_w * p.stride_w - p.padding_w),
        stream0(tile.stream0),
        row_size(p.width * p.stream) {}

  // Index in one input plane [H, W, S] of entry `col` of patch row `row`; -1 for zero padding.
  __device__ __forceinline__ int64_t index(const ConvParams& p, const ConvPlan& t, int row, int col) const {
    const int64_t in_row = row0 + row;
    bool inside = in_row >= 0 && in_row < p.height;
    int64_t entry;
    if (t.stream_shift < 0) {
      entry = col0 * p.stream + col;
      inside = inside && entry >= 0 && entry < row_size;
    } else {
      const int64_t in_col = col0 + (col >> t.stream_shift);
      const int64_t s = stream0 + (col & (t.stream - 1));
      inside = inside && in_col >= 0 && in_col < p.width && s < p.stream;
      entry = in_col * p.stream + s;
    }
    return inside ? in_row * row_size + entry : -1;
  }
};

// Bias and polynomial of one output channel, on its canonical sums.
template <int kCount>
__device__ __forceinline__ void finish_outputs(const ConvParams& p, const int64_t* __restrict__ bias,
                                               const PolyTable& poly, int64_t limb, int64_t out, const Limb& m,
                                               uint32_t (&v)[kCount]) {
  if (bias != nullptr) {
    const uint32_t a = static_cast<uint32_t>(__ldg(bias + limb * p.out_channels + out));
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = add_mod(v[i], a, m);
  }
  if (poly.degree > 0) apply_poly(v, poly.row(limb, out, p.out_channels), poly.degree, m);
}

// What is stored of the window that starts at v[first]: its sum times `factor`; without a pool the residue as it is.
// Canonical v and factor: sum * factor <= 4 * (b - 1)^2 <= 4 * (2^31 - 2)^2 < 2^64, so one reduction does for both.
template <int kWindow, int kCount>
__device__ __forceinline__ uint32_t pool_window(const uint32_t (&v)[kCount], int first, uint32_t factor,
                                                const Limb& m) {
  static_assert(kWindow >= 1 && kWindow <= 4 && kCount % kWindow == 0);
  if constexpr (kWindow == 1) return v[first];
  uint64_t sum = 0;
#pragma unroll
  for (int k = 0; k < kWindow; ++k) sum += v[first + k];
  return barrett(sum * factor, m);
}

}  // namespace mcfhe::cuda
