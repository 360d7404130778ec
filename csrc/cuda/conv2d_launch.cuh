// Launches the tiled convolution: its arithmetic, the cheapest thread tile, one kernel. For conv2d.cu, kWindow = 1, and
// conv2d_pool.cu.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "arithmetic.h"
#include "conv2d_kernels.h"
#include "conv2d_tiled.cuh"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {

// Outputs one thread holds.
struct ThreadTile {
  int out, positions;
};
// Smallest to largest; a larger one is taken where the estimate says that it is faster.
template <int kWindow>
inline constexpr ThreadTile kSmallTile{4, kWindow};
inline constexpr ThreadTile kMediumTile{8, 4};
inline constexpr ThreadTile kLargeTile{8, 8};

// A tap costs a warp its multiply-adds at 64 a cycle, or what it reads from shared memory at 128 bytes a cycle: its
// positions, a broadcast of 16 bytes of weights at a time, and the tap's offset.
inline ConvModel tile_model(ThreadTile thread, int64_t value_bytes) {
  const double multiply = thread.out * thread.positions * 32.0 / 64.0;
  const double shared = static_cast<double>(thread.positions * value_bytes) / 4.0 +
                        static_cast<double>(thread.out * value_bytes) / 16.0 + 1.0;
  return {thread.out, int64_t{kWarpSize} * thread.positions,  1, value_bytes, value_bytes, 1,
          0,          kConvWarps * std::max(multiply, shared)};
}

// The arithmetic of one call: what was asked for, or the best that the bounds and the device allow.
inline cudaError_t resolve_arithmetic(WeightRange range, ConvOptions options, DeviceTraits& device,
                                      Arithmetic& arithmetic) {
  const cudaError_t error = current_device_traits(device);
  if (error != cudaSuccess) return error;
  const bool choose = options.arithmetic == Arithmetic::kAuto;
  arithmetic = choose ? choose_arithmetic(range, device) : options.arithmetic;
  return is_allowed(arithmetic, range) ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename Path, int kOut, int kPos, int kWindow>
cudaError_t launch_tile(const ConvParams& p, const ConvPlan& plan, WeightRange range, const ConvTensors& tensors,
                        cudaStream_t stream) {
  if (plan.blocks > kMaxGridX || p.limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape shape{dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.limbs)), dim3(kConvThreads),
                          plan.shared_bytes};
  const PolyTable poly{tensors.poly, p.poly_degree, p.poly_channel_stride};
  return launch(MCFHE_KERNEL(conv2d_tiled_kernel<Path, kOut, kPos, kWindow>), shape, stream, p, plan,
                products_between_reductions(range), tensors.x, tensors.weight, tensors.bias, poly, tensors.factor,
                tensors.moduli, tensors.y);
}

// The forced tile, or the one with the lowest estimate. cudaErrorNotSupported where none fits.
template <typename Path, int kWindow>
cudaError_t launch_tiled(const ConvParams& p, PoolWindow pool, ConvTile wish, WeightRange range,
                         const DeviceTraits& device, const ConvTensors& tensors, cudaStream_t stream) {
  constexpr ThreadTile kSmall = kSmallTile<kWindow>;
  const bool aligned = reinterpret_cast<std::uintptr_t>(tensors.x) % 16 == 0;
  ConvPlan plan{};
  ConvTile chosen = ConvTile::kAuto;
  const auto consider = [&](ConvTile tile, ThreadTile thread) {
    if (wish != ConvTile::kAuto && wish != tile) return;
    const ConvModel model = tile_model(thread, sizeof(typename Path::Value));
    const ConvPlan other = plan_conv2d(p, pool, model, aligned, device.processors);
    if (other.blocks == 0 || (plan.blocks != 0 && plan.cycles <= other.cycles)) return;
    plan = other;
    chosen = tile;
  };
  consider(ConvTile::kSmall, kSmall);
  if constexpr (!Path::kMidSum) {
    consider(ConvTile::kMedium, kMediumTile);
    consider(ConvTile::kLarge, kLargeTile);
    if (chosen == ConvTile::kMedium) {
      return launch_tile<Path, kMediumTile.out, kMediumTile.positions, kWindow>(p, plan, range, tensors, stream);
    }
    if (chosen == ConvTile::kLarge) {
      return launch_tile<Path, kLargeTile.out, kLargeTile.positions, kWindow>(p, plan, range, tensors, stream);
    }
  }
  if (chosen != ConvTile::kSmall) return cudaErrorNotSupported;
  return launch_tile<Path, kSmall.out, kSmall.positions, kWindow>(p, plan, range, tensors, stream);
}

}  // namespace mcfhe::cuda
