// The convolution on int8 tensor cores. Residues are split into four bytes, 0..255; weights into kDigits balanced
// base-256 digits, -128..127; the partial sums of byte i and digit d meet in accumulator i + d, and
//   sum of q * r = sum over k of accumulator[k] * 256^k,
// taken modulo 2^64, is exact because |sum| < 2^63. A unit is four input channels, the four bytes of a word, at one
// tap of the window; a step of the tensor core takes 8 units.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "conv2d_block.cuh"
#include "launch.cuh"
#include "mma.cuh"

namespace mcfhe::cuda {

inline constexpr int kPlanes = 4;            // bytes of a residue
inline constexpr int kUnitChannels = 4;      // bytes of a word
inline constexpr int kStepUnits = 8;         // 32 bytes
inline constexpr int kTileOut = 16;          // rows of the tensor core's result
inline constexpr int kTilePositions = 8;     // columns
inline constexpr int kWarpColumnTiles = 4;   // column tiles a warp holds
inline constexpr int kWordsPerFragment = 4;  // words of a 16 x 32 fragment a lane holds

// Balanced base-256 digit d of q, as a byte.
__device__ __forceinline__ uint32_t weight_digit(int32_t q, int d) {
  for (int i = 0; i < d; ++i) q = (q - static_cast<int8_t>(q)) / 256;
  return static_cast<uint32_t>(q) & 0xffu;
}

// The patch of `units` x 4 channels from `channel0` on, one word for four channels: plane[byte][entry].
__device__ __forceinline__ void stage_planes(const ConvParams& p, const ConvPlan& t, const BlockTile& tile,
                                             const int64_t* __restrict__ x, int64_t channel0, int units,
                                             uint32_t* patch) {
  const PatchSource source(p, t, tile);
  const int64_t channels = p.in_channels / p.groups;
  const int64_t plane = p.height * source.row_size;
  const int64_t* const from = x + (tile.limb * p.in_channels + tile.group * channels) * plane;
  const int entries = t.patch_rows * t.patch_width;
  for (int i = static_cast<int>(threadIdx.x); i < units * entries; i += kConvThreads) {
    const int line = t.row_units.quotient(i);
    const int unit = t.rows_per_unit.quotient(line);
    const int col = i - line * t.patch_width;
    const int row = line - unit * t.patch_rows;
    const int64_t index = source.index(p, t, row, col);
    uint32_t word[kUnitChannels];
#pragma unroll
    for (int c = 0; c < kUnitChannels; ++c) {
      const int64_t channel = channel0 + unit * kUnitChannels + c;
      word[c] = 0;
      if (index >= 0 && channel < channels) word[c] = static_cast<uint32_t>(__ldg(from + channel * plane + index));
    }
    uint32_t bytes[kPlanes];
    transpose_bytes(word, bytes);
    uint32_t* const to = patch + unit * kPlanes * t.patch_size + row * t.patch_width + col;
#pragma unroll
    for (int b = 0; b < kPlanes; ++b) to[b * t.patch_size] = bytes[b];
  }
}

// Unit k of a chunk of `units` words of channels is word k % units at tap k / units of the window: neighbouring units
// lie in different planes and so in different banks. Its place in the patch, for byte 0; any place beyond the last.
__device__ __forceinline__ void stage_unit_places(const ConvParams& p, const ConvPlan& t, int units, int count,
                                                  int32_t* places) {
  const int kernel_w = static_cast<int>(p.kernel_w);
  for (int k = static_cast<int>(threadIdx.x); k < (count + kStepUnits - 1) / kStepUnits * kStepUnits;
       k += kConvThreads) {
    const int tap = k / units;
    const int row = tap / kernel_w * static_cast<int>(p.dilation_h);
    const int col = tap % kernel_w * static_cast<int>(p.dilation_w) * t.stream;
    const int unit = k - tap * units;
    places[k] = k < count ? unit * kPlanes * t.patch_size + row * t.patch_width + col : 0;
  }
}

// Weights as the tensor core's fragments: staged[step][tile of 16 outputs][digit][lane][word], zeros beyond the last
// output, channel and unit.
template <int kDigits>
__device__ __forceinline__ void stage_digits(const ConvParams& p, const BlockTile& tile, int out_tiles,
                                             const int64_t* __restrict__ weight, int64_t channel0, int units, int count,
                                             uint32_t* staged) {
  const int64_t window = p.kernel_h * p.kernel_w;
  const int64_t channels = p.in_channels / p.groups;
  const int64_t outs = p.out_channels / p.groups;
  const int steps = (count + kStepUnits - 1) / kStepUnits;
  constexpr int kFragment = kWarpSize * kWordsPerFragment;
  for (int i = static_cast<int>(threadIdx.x); i < steps * out_tiles * kFragment; i += kConvThreads) {
    const int word = i % kWordsPerFragment;
    const int lane = i / kWordsPerFragment % kWarpSize;
    const int fragment = i / kFragment;  // step * out_tiles + tile of outputs
    const int64_t o = (tile.out_tile * out_tiles + fragment % out_tiles) * kTileOut + lane / 4 + word % 2 * 8;
    const int k = fragment / out_tiles * kStepUnits + lane % 4 + word / 2 * 4;
    const int tap = k / units;
    const int64_t channel = channel0 + (k - tap * units) * kUnitChannels;
    uint32_t digits[kDigits] = {};
    if (o < outs && k < count) {
      const int64_t row = ((tile.group * outs + o) * channels + channel) * window + tap;
#pragma unroll
      for (int c = 0; c < kUnitChannels; ++c) {
        const int32_t q = channel + c < channels ? static_cast<int32_t>(__ldg(weight + row + c * window)) : 0;
#pragma unroll
        for (int d = 0; d < kDigits; ++d) digits[d] |= weight_digit(q, d) << 8 * c;
      }
    }
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      staged[(fragment * kDigits + d) * kFragment + lane * kWordsPerFragment + word] = digits[d];
    }
  }
}

// kRowTiles: tiles of 16 output channels a warp holds. The column tiles of a warp are kWindow outputs each of its 8
// positions (4 / kWindow times), so that a window's sums lie in one lane; kWindow = 1 is no pool.
template <int kDigits, int kRowTiles, int kWindow>
__global__ void __launch_bounds__(kConvThreads, 2)
    conv2d_int8_kernel(const ConvParams p, const ConvPlan t,
                       const int64_t* __restrict__ x,       // [L, C, H, W, S]
                       const int64_t* __restrict__ weight,  // [O, C / groups, KH, KW]
                       const int64_t* __restrict__ bias,    // [L, O] or null
                       const PolyTable poly,                // [L, 1 or O, degree + 1]
                       const int64_t* __restrict__ factor,  // [L] or null; of the pool
                       const int64_t* __restrict__ moduli,  // [L]
                       int64_t* __restrict__ y) {           // [L, O, OH, OW, S], pooled
  constexpr int kPositionTiles = kWarpColumnTiles / kWindow;
  constexpr int kPowers = kPlanes + kDigits - 1;
  constexpr int kFragment = kWarpSize * kWordsPerFragment;
  MCFHE_DYNAMIC_SHARED(shared);
  __shared__ Limb limb_slot;
  const uint32_t* const s_weight = reinterpret_cast<const uint32_t*>(shared);
  const uint32_t* const s_patch = reinterpret_cast<const uint32_t*>(shared + t.patch_offset);
  const int32_t* const s_places = reinterpret_cast<const int32_t*>(shared + t.taps_offset);

  const BlockTile tile = locate_block(t);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  const int out_tiles = t.out_warps * kRowTiles;
  const int out_tile0 = warp % t.out_warps * kRowTiles;
  const int position0 = warp / t.out_warps * kPositionTiles * kTilePositions;
  const int window = static_cast<int>(p.kernel_h * p.kernel_w);
  const int64_t all_units = (p.in_channels / p.groups + kUnitChannels - 1) / kUnitChannels;

  int entry[kWarpColumnTiles];  // of the position whose bytes this lane feeds to the tensor core
#pragma unroll
  for (int j = 0; j < kWarpColumnTiles; ++j) {
    entry[j] = patch_entry<kWindow>(p, t, position0 + j / kWindow * kTilePositions + lane / 4, j % kWindow);
  }
  int32_t sum[kRowTiles][kWarpColumnTiles][kPowers][4] = {};

  if (thread == kConvThreads - 1) limb_slot = make_limb(__ldg(moduli + tile.limb));
  for (int64_t u0 = 0; u0 < all_units; u0 += t.chunk_units) {
    const int units = static_cast<int>(all_units - u0 < t.chunk_units ? all_units - u0 : t.chunk_units);
    const int count = units * window;
    if (u0 > 0) __syncthreads();
    stage_unit_places(p, t, units, count, reinterpret_cast<int32_t*>(shared + t.taps_offset));
    stage_digits<kDigits>(p, tile, out_tiles, weight, u0 * kUnitChannels, units, count,
                          reinterpret_cast<uint32_t*>(shared));
    stage_planes(p, t, tile, x, u0 * kUnitChannels, units, reinterpret_cast<uint32_t*>(shared + t.patch_offset));
    __syncthreads();
    for (int step = 0; step * kStepUnits < count; ++step) {
      uint32_t a[kRowTiles][kDigits][kWordsPerFragment];
      const uint32_t* fragment = s_weight + (step * out_tiles + out_tile0) * kDigits * kFragment;
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
        for (int d = 0; d < kDigits; ++d) {
          struct alignas(16) Words {
            uint32_t v[kWordsPerFragment];
          };
          const Words words = reinterpret_cast<const Words*>(fragment + (i * kDigits + d) * kFragment)[lane];
#pragma unroll
          for (int w = 0; w < kWordsPerFragment; ++w) a[i][d][w] = words.v[w];
        }
      }
      const int place0 = s_places[step * kStepUnits + lane % 4];
      const int place1 = s_places[step * kStepUnits + lane % 4 + 4];
#pragma unroll
      for (int j = 0; j < kWarpColumnTiles; ++j) {
#pragma unroll
        for (int byte = 0; byte < kPlanes; ++byte) {
          const uint32_t* const from = s_patch + byte * t.patch_size + entry[j];
          const uint32_t b[2] = {from[place0], from[place1]};
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
            for (int d = 0; d < kDigits; ++d) mma_s8_u8(sum[i][j][byte + d], a[i][d], b);
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
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t in_group = (tile.out_tile * out_tiles + out_tile0 + i) * kTileOut + half * 8 + lane / 4;
      if (in_group >= outs) continue;
      const int64_t o = tile.group * outs + in_group;
      uint32_t v[kWarpColumnTiles * 2];
#pragma unroll
      for (int j = 0; j < kWarpColumnTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          uint64_t total = 0;
#pragma unroll
          for (int power = kPowers - 1; power >= 0; --power) {
            total = (total << 8) + static_cast<uint64_t>(static_cast<int64_t>(sum[i][j][power][half * 2 + e]));
          }
          v[e * kWarpColumnTiles + j] = reduce_bounded(static_cast<int64_t>(total), limb);
        }
      }
      finish_outputs(p, bias, poly, tile.limb, o, limb, v);
      int64_t* const to = y + (tile.limb * p.out_channels + o) * plane;
#pragma unroll
      for (int j = 0; j < kPositionTiles; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t index = output_index(p, t, tile, position0 + j * kTilePositions + lane % 4 * 2 + e);
          const int first = e * kWarpColumnTiles + j * kWindow;
          if (index >= 0) to[index] = static_cast<int64_t>(pool_window<kWindow>(v, first, scale, limb));
        }
      }
    }
  }
}

}  // namespace mcfhe::cuda
