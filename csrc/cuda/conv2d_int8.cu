// conv2d on int8 tensor cores.
#include "conv2d_int8_launch.cuh"

namespace mcfhe::cuda {

cudaError_t launch_conv2d_int8(const ConvParams& p, WeightRange range, const DeviceTraits& device,
                               const ConvTensors& tensors, cudaStream_t stream) {
  return launch_int8<1>(p, {1, 1}, range, device, tensors, stream);
}

}  // namespace mcfhe::cuda
