// Combining one value a thread over a warp and over a block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"

namespace mcfhe::cuda {

struct Plus {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a + b; }
};

struct Maximum {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a > b ? a : b; }
};

// Lanes at a distance of `step`, 2 * step, ... 16 from each other; step = 1 combines the whole warp. Every lane gets
// the result.
template <typename Combine>
__device__ __forceinline__ unsigned long long warp_combine(unsigned long long value, Combine combine, int step = 1) {
  for (int distance = step; distance < kWarpSize; distance *= 2) {
    value = combine(value, __shfl_xor_sync(kFullWarp, value, distance));
  }
  return value;
}

// All threads of a one-dimensional block of full warps call it; thread 0 gets the result. `scratch` holds one value a
// warp and is free again after the next barrier.
template <typename Combine>
__device__ __forceinline__ unsigned long long block_combine(unsigned long long value, Combine combine,
                                                            unsigned long long* scratch) {
  value = warp_combine(value, combine);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread % kWarpSize == 0) scratch[thread / kWarpSize] = value;
  __syncthreads();
  if (thread == 0) {
    const int warps = static_cast<int>(blockDim.x) / kWarpSize;
    for (int i = 1; i < warps; ++i) value = combine(value, scratch[i]);
  }
  return value;
}

}  // namespace mcfhe::cuda
