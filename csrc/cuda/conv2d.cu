// conv2d: chooses the arithmetic and the tile, launches one kernel.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "arithmetic.h"
#include "conv2d_kernels.h"
#include "conv2d_tiled.cuh"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {
namespace {

// Outputs one thread holds.
struct ThreadTile {
  int out, positions;
};
// Smallest to largest; a larger one is taken where the estimate says that it is faster.
constexpr ThreadTile kSmallTile{4, 1};
constexpr ThreadTile kMediumTile{8, 4};
constexpr ThreadTile kLargeTile{8, 8};

// A tap costs a warp its multiply-adds at 64 a cycle, or what it reads from shared memory at 128 bytes a cycle: its
// positions, a broadcast of 16 bytes of weights at a time, and the tap's offset.
ConvModel tile_model(ThreadTile thread, int64_t value_bytes) {
  const double multiply = thread.out * thread.positions * 32.0 / 64.0;
  const double shared = static_cast<double>(thread.positions * value_bytes) / 4.0 +
                        static_cast<double>(thread.out * value_bytes) / 16.0 + 1.0;
  return {thread.out, int64_t{kWarpSize} * thread.positions,  1, value_bytes, value_bytes, 1,
          0,          kConvWarps * std::max(multiply, shared)};
}

template <typename Path, int kOut, int kPos>
cudaError_t launch_tile(const ConvParams& p, const ConvPlan& plan, WeightRange range, const ConvTensors& tensors,
                        cudaStream_t stream) {
  if (plan.blocks > kMaxGridX || p.limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape shape{dim3(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(p.limbs)), dim3(kConvThreads),
                          plan.shared_bytes};
  const PolyTable poly{tensors.poly, p.poly_degree, p.poly_channel_stride};
  return launch(MCFHE_KERNEL(conv2d_tiled_kernel<Path, kOut, kPos>), shape, stream, p, plan,
                products_between_reductions(range), tensors.x, tensors.weight, tensors.bias, poly, tensors.moduli,
                tensors.y);
}

// The forced tile, or the one with the lowest estimate; the direct kernel where no tile fits.
template <typename Path>
cudaError_t launch_path(const ConvParams& p, ConvTile wish, WeightRange range, const DeviceTraits& device,
                        const ConvTensors& tensors, cudaStream_t stream) {
  const bool aligned = reinterpret_cast<std::uintptr_t>(tensors.x) % 16 == 0;
  ConvPlan plan{};
  ConvTile chosen = ConvTile::kDirect;
  const auto consider = [&](ConvTile tile, ThreadTile thread) {
    if (wish != ConvTile::kAuto && wish != tile) return;
    const ConvPlan other = plan_conv2d(p, tile_model(thread, sizeof(typename Path::Value)), aligned, device.processors);
    if (other.blocks == 0 || (plan.blocks != 0 && plan.cycles <= other.cycles)) return;
    plan = other;
    chosen = tile;
  };
  consider(ConvTile::kSmall, kSmallTile);
  if constexpr (!Path::kMidSum) {
    consider(ConvTile::kMedium, kMediumTile);
    consider(ConvTile::kLarge, kLargeTile);
    if (chosen == ConvTile::kMedium) {
      return launch_tile<Path, kMediumTile.out, kMediumTile.positions>(p, plan, range, tensors, stream);
    }
    if (chosen == ConvTile::kLarge) {
      return launch_tile<Path, kLargeTile.out, kLargeTile.positions>(p, plan, range, tensors, stream);
    }
  }
  if (chosen == ConvTile::kSmall) {
    return launch_tile<Path, kSmallTile.out, kSmallTile.positions>(p, plan, range, tensors, stream);
  }
  if (wish != ConvTile::kAuto && wish != ConvTile::kDirect) return cudaErrorInvalidValue;
  return launch_conv2d_direct(p, range, tensors, stream);
}

}  // namespace

cudaError_t launch_conv2d(const ConvParams& p, WeightRange range, ConvOptions options, const int64_t* x,
                          const int64_t* weight, const int64_t* bias, const int64_t* poly, const int64_t* moduli,
                          int64_t* y, cudaStream_t stream) {
  if (p.limbs * p.out_channels * p.out_h * p.out_w * p.stream == 0) return cudaSuccess;
  DeviceTraits device{};
  const cudaError_t error = current_device_traits(device);
  if (error != cudaSuccess) return error;
  const bool choose = options.arithmetic == Arithmetic::kAuto;
  const Arithmetic arithmetic = choose ? choose_arithmetic(range, device) : options.arithmetic;
  if (!is_allowed(arithmetic, range)) return cudaErrorInvalidValue;

  const ConvTensors tensors{x, weight, bias, poly, moduli, y};
  switch (arithmetic) {
    case Arithmetic::kDouble:
      return launch_path<DoublePath>(p, options.tile, range, device, tensors, stream);
    case Arithmetic::kInt64:
      return launch_path<Int64Path>(p, options.tile, range, device, tensors, stream);
    case Arithmetic::kInt8:
      return launch_conv2d_int8(p, range, device, tensors, stream);
    default:
      return launch_path<Int64MidSumPath>(p, options.tile, range, device, tensors, stream);
  }
}

}  // namespace mcfhe::cuda
