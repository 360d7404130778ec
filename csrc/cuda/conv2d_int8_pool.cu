// conv2d with a sum pool behind it on int8 tensor cores.
#include "conv2d_int8_launch.cuh"

namespace mcfhe::cuda {

cudaError_t launch_conv2d_int8_pool(const ConvParams& p, PoolWindow pool, WeightRange range, const DeviceTraits& device,
                                    const ConvTensors& tensors, cudaStream_t stream) {
  return launch_int8<kPoolWindow>(p, pool, range, device, tensors, stream);
}

}  // namespace mcfhe::cuda
