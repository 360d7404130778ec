// conv2d with a sum pool behind it, in one launch: the kernels of conv2d, a window of outputs in each thread.
#include <cuda_runtime.h>

#include <cstdint>

#include "conv2d_kernels.h"
#include "conv2d_launch.cuh"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {

cudaError_t launch_conv2d_pool(const ConvParams& p, PoolWindow pool, WeightRange range, ConvOptions options,
                               const int64_t* x, const int64_t* weight, const int64_t* bias, const int64_t* poly,
                               const int64_t* factor, const int64_t* moduli, int64_t* y, cudaStream_t stream) {
  if (p.limbs * p.out_channels * (p.out_h / pool.h) * (p.out_w / pool.w) * p.stream == 0) return cudaSuccess;
  if (pool.h > kPoolWindow || pool.h * pool.w != kPoolWindow) return cudaErrorNotSupported;
  DeviceTraits device{};
  Arithmetic arithmetic{};
  const cudaError_t error = resolve_arithmetic(range, options, device, arithmetic);
  if (error != cudaSuccess) return error;
  const ConvTensors tensors{x, weight, bias, poly, factor, moduli, y};
  switch (arithmetic) {
    case Arithmetic::kDouble:
      return launch_tiled<DoublePath, kPoolWindow>(p, pool, options.tile, range, device, tensors, stream);
    case Arithmetic::kInt64:
      return launch_tiled<Int64Path, kPoolWindow>(p, pool, options.tile, range, device, tensors, stream);
    case Arithmetic::kInt8:
      return launch_conv2d_int8_pool(p, pool, range, device, tensors, stream);
    default:
      return launch_tiled<Int64MidSumPath, kPoolWindow>(p, pool, options.tile, range, device, tensors, stream);
  }
}

}  // namespace mcfhe::cuda
