// count_out_of_range: how many entries are not residues of their limb.
#include <cuda_runtime.h>

#include <algorithm>

#include "block_reduce.cuh"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 2048;  // a limb: fills any device, few atomics

__global__ void __launch_bounds__(kThreads)
    count_out_of_range_kernel(const int64_t limbs, const int64_t per_limb,
                              const int64_t* __restrict__ x,       // [limbs, per_limb]
                              const int64_t* __restrict__ moduli,  // [L]
                              unsigned long long* count) {         // scalar
  __shared__ unsigned long long scratch[kThreads / kWarpSize];
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  unsigned long long found = 0;
  for (int64_t l = blockIdx.y; l < limbs; l += gridDim.y) {
    const uint64_t b = static_cast<uint64_t>(__ldg(moduli + l));
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < per_limb; i += step) {
      // As unsigned numbers, negative entries are above every modulus.
      found += static_cast<uint64_t>(__ldg(x + l * per_limb + i)) >= b ? 1 : 0;
    }
  }
  found = block_combine(found, Plus{}, scratch);
  if (threadIdx.x == 0 && found != 0) atomicAdd(count, found);
}

}  // namespace

cudaError_t launch_count_out_of_range(const PointwiseParams& p, const int64_t* x, const int64_t* moduli, int64_t* count,
                                      cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(count, 0, sizeof(int64_t), stream);
  const int64_t per_limb = p.channels * p.inner;
  if (error != cudaSuccess || p.limbs * per_limb == 0) return error;
  const int64_t blocks = std::min(ceil_div<int64_t>(per_limb, kThreads), kMaxBlocks);
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(std::min(p.limbs, kMaxGridYZ))),
                          dim3(kThreads)};
  return launch(MCFHE_KERNEL(count_out_of_range_kernel), shape, stream, p.limbs, per_limb, x, moduli,
                reinterpret_cast<unsigned long long*>(count));
}

}  // namespace mcfhe::cuda
