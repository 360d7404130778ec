// The convolution kernels that live in sources of their own, behind launch_conv2d and launch_linear.
#pragma once

#include "device_traits.h"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {

// The tensors of one call; shapes as in cuda_launch.h.
struct ConvTensors {
  const int64_t* x;       // [L, C, H, W, S]
  const int64_t* weight;  // [O, C / groups, KH, KW]
  const int64_t* bias;    // [L, O] or null
  const int64_t* poly;    // [L, 1 or O, degree + 1]
  const int64_t* moduli;  // [L]
  int64_t* y;             // [L, O, OH, OW, S]
};

// One output a thread, any sizes, any weights: what no tile can hold.
cudaError_t launch_conv2d_direct(const ConvParams& p, WeightRange range, const ConvTensors& tensors,
                                 cudaStream_t stream);

// int8 tensor cores, compute capability 8.0 or later; cudaErrorInvalidValue beyond |q| = 8,355,711, about 21,000
// weights an output, or windows that no tile can hold.
cudaError_t launch_conv2d_int8(const ConvParams& p, WeightRange range, const DeviceTraits& device,
                               const ConvTensors& tensors, cudaStream_t stream);

}  // namespace mcfhe::cuda
