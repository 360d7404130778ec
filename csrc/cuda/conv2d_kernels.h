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
  const int64_t* factor;  // [L] or null; of the pool
  const int64_t* moduli;  // [L]
  int64_t* y;             // [L, O, OH, OW, S]; with a pool [L, O, OH / h, OW / w, S]
};

// One output a thread, any sizes, any weights: what no tile can hold.
cudaError_t launch_conv2d_direct(const ConvParams& p, WeightRange range, const ConvTensors& tensors,
                                 cudaStream_t stream);

// int8 tensor cores, compute capability 8.0 or later; cudaErrorInvalidValue beyond |q| = 8,355,711 and about 21,000
// weights an output, cudaErrorNotSupported for windows that no tile can hold.
cudaError_t launch_conv2d_int8(const ConvParams& p, WeightRange range, const DeviceTraits& device,
                               const ConvTensors& tensors, cudaStream_t stream);

// The same with a pool of kPoolWindow outputs.
cudaError_t launch_conv2d_int8_pool(const ConvParams& p, PoolWindow pool, WeightRange range, const DeviceTraits& device,
                                    const ConvTensors& tensors, cudaStream_t stream);

}  // namespace mcfhe::cuda
