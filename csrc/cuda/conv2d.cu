// conv2d: one launch of the tiled, the int8 or the direct kernel.
#include <cuda_runtime.h>

#include <cstdint>

#include "conv2d_kernels.h"
#include "conv2d_launch.cuh"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {
namespace {

constexpr PoolWindow kNoPool{1, 1};

// The direct kernel where no tile fits, or on request.
template <typename Path>
cudaError_t launch_path(const ConvParams& p, ConvTile wish, WeightRange range, const DeviceTraits& device,
                        const ConvTensors& tensors, cudaStream_t stream) {
  const cudaError_t error = launch_tiled<Path, 1>(p, kNoPool, wish, range, device, tensors, stream);
  if (error != cudaErrorNotSupported) return error;
  if (wish != ConvTile::kAuto && wish != ConvTile::kDirect) return cudaErrorInvalidValue;
  return launch_conv2d_direct(p, range, tensors, stream);
}

}  // namespace

cudaError_t launch_conv2d(const ConvParams& p, WeightRange range, ConvOptions options, const int64_t* x,
                          const int64_t* weight, const int64_t* bias, const int64_t* poly, const int64_t* moduli,
                          int64_t* y, cudaStream_t stream) {
  if (p.limbs * p.out_channels * p.out_h * p.out_w * p.stream == 0) return cudaSuccess;
  DeviceTraits device{};
  Arithmetic arithmetic{};
  const cudaError_t error = resolve_arithmetic(range, options, device, arithmetic);
  if (error != cudaSuccess) return error;
  const ConvTensors tensors{x, weight, bias, poly, nullptr, moduli, y};
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
