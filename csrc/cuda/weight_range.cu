// weight_range: the bounds on a layer's weights that choose its arithmetic.
#include <cuda_runtime.h>

#include <algorithm>

#include "block_reduce.cuh"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 4096;  // fills any device, few atomics
constexpr unsigned long long kLargest = static_cast<unsigned long long>(INT64_MAX);

// Sum clamped at 2^63 - 1 of two numbers that are.
struct ClampedPlus {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a + b < kLargest ? a + b : kLargest;
  }
};

__global__ void __launch_bounds__(kThreads) weight_range_kernel(const int64_t rows, const int64_t columns,
                                                                const int64_t* __restrict__ weight,  // [rows, columns]
                                                                unsigned long long* range) {         // [2]
  // Two, in turn: a barrier lies between the last read of one and its next use.
  __shared__ unsigned long long scratch[2][kThreads / kWarpSize];
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    unsigned long long largest = 0;
    unsigned long long sum = 0;
    for (int64_t column = threadIdx.x; column < columns; column += kThreads) {
      const int64_t q = __ldg(weight + row * columns + column);
      const unsigned long long bits = static_cast<unsigned long long>(q);
      const unsigned long long magnitude = q < 0 ? 0 - bits : bits;
      const unsigned long long clamped = magnitude < kLargest ? magnitude : kLargest;
      largest = Maximum{}(largest, clamped);
      sum = ClampedPlus{}(sum, clamped);
    }
    largest = block_combine(largest, Maximum{}, scratch[0]);
    sum = block_combine(sum, ClampedPlus{}, scratch[1]);
    if (threadIdx.x == 0) {
      atomicMax(range, largest);
      atomicMax(range + 1, sum);
    }
  }
}

}  // namespace

cudaError_t launch_weight_range(int64_t rows, int64_t columns, const int64_t* weight, int64_t* range,
                                cudaStream_t stream) {
  const cudaError_t error = cudaMemsetAsync(range, 0, 2 * sizeof(int64_t), stream);
  if (error != cudaSuccess || rows * columns == 0) return error;
  const LaunchShape shape{dim3(static_cast<unsigned>(std::min(rows, kMaxBlocks))), dim3(kThreads)};
  return launch(MCFHE_KERNEL(weight_range_kernel), shape, stream, rows, columns, weight,
                reinterpret_cast<unsigned long long*>(range));
}

}  // namespace mcfhe::cuda
