// Launches the convolution on int8 tensor cores: how many digits the weights need, which tile. For conv2d_int8.cu,
// kWindow = 1, and conv2d_int8_pool.cu.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "arithmetic.h"
#include "conv2d_int8.cuh"
#include "conv2d_kernels.h"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {

// The largest |q| that 1, 2 and 3 balanced base-256 digits hold.
inline constexpr int64_t kMaxDigits = 3;
inline constexpr int64_t kLargestWeight[kMaxDigits] = {127, 127 * 257, 127 * 65793};
// An accumulator adds at most min(planes, digits) products of at most 255 * 128 for each weight.
inline constexpr int64_t kMaxWeights = ((int64_t{1} << 31) - 1) / (kMaxDigits * 255 * 128);

// A warp's step of 8 units costs its tensor-core instructions, at about 2048 multiply-adds a cycle and multiprocessor,
// or its reads from shared memory at 128 bytes a cycle.
inline ConvModel int8_model(int64_t digits, int64_t row_tiles) {
  const double tiles = static_cast<double>(row_tiles) * kWarpColumnTiles;
  const double multiply = tiles * static_cast<double>(kPlanes * digits) * kTileOut * kTilePositions * 32 / 2048.0;
  const double shared = 2.0 * kPlanes * kWarpColumnTiles + 4.0 * static_cast<double>(row_tiles * digits) + 2.0;
  return {row_tiles * kTileOut,
          kWarpColumnTiles * kTilePositions,
          kUnitChannels,
          kPlanes * int64_t{sizeof(uint32_t)},
          digits * int64_t{sizeof(uint32_t)},
          kStepUnits,
          2,
          kConvWarps * std::max(multiply, shared) / kStepUnits};
}

template <int kDigits, int kRowTiles, int kWindow>
cudaError_t launch_int8_tile(const ConvParams& p, const ConvPlan& plan, const ConvTensors& tensors,
                             cudaStream_t stream) {
  if (plan.blocks > kMaxGridX || p.limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape shape{dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.limbs)), dim3(kConvThreads),
                          plan.shared_bytes};
  const PolyTable poly{tensors.poly, p.poly_degree, p.poly_channel_stride};
  return launch(MCFHE_KERNEL(conv2d_int8_kernel<kDigits, kRowTiles, kWindow>), shape, stream, p, plan, tensors.x,
                tensors.weight, tensors.bias, poly, tensors.factor, tensors.moduli, tensors.y);
}

// One or two tiles of 16 channels a warp: whichever the estimate says. Three digits leave no registers for two.
template <int kDigits, int kWindow>
cudaError_t launch_digits(const ConvParams& p, PoolWindow pool, const DeviceTraits& device, const ConvTensors& tensors,
                          cudaStream_t stream) {
  const ConvPlan narrow = plan_conv2d(p, pool, int8_model(kDigits, 1), false, device.processors);
  if constexpr (kDigits < 3) {
    const ConvPlan wide = plan_conv2d(p, pool, int8_model(kDigits, 2), false, device.processors);
    if (wide.blocks != 0 && (narrow.blocks == 0 || wide.cycles < narrow.cycles)) {
      return launch_int8_tile<kDigits, 2, kWindow>(p, wide, tensors, stream);
    }
  }
  if (narrow.blocks == 0) return cudaErrorNotSupported;
  return launch_int8_tile<kDigits, 1, kWindow>(p, narrow, tensors, stream);
}

// cudaErrorInvalidValue for weights beyond what it can hold, cudaErrorNotSupported for windows that no tile can hold
// and devices without the instruction.
template <int kWindow>
cudaError_t launch_int8(const ConvParams& p, PoolWindow pool, WeightRange range, const DeviceTraits& device,
                        const ConvTensors& tensors, cudaStream_t stream) {
  const int64_t weights = p.in_channels / p.groups * p.kernel_h * p.kernel_w;
  if (device.major < 8) return cudaErrorNotSupported;
  if (weights > kMaxWeights || range.max_sum > kInt64MaxSum) return cudaErrorInvalidValue;
  if (range.max_abs <= kLargestWeight[0]) return launch_digits<1, kWindow>(p, pool, device, tensors, stream);
  if (range.max_abs <= kLargestWeight[1]) return launch_digits<2, kWindow>(p, pool, device, tensors, stream);
  if (range.max_abs <= kLargestWeight[2]) return launch_digits<3, kWindow>(p, pool, device, tensors, stream);
  return cudaErrorInvalidValue;
}

}  // namespace mcfhe::cuda
