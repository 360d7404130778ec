// Measures what a unit can do at best: long chains of one instruction, enough of them to hide its latency.
#include "peaks.h"

#include <cuda_runtime.h>

#include "cuda/launch.cuh"
#include "cuda/mma.cuh"

namespace mcfhe::bench {
namespace {

using cuda::kWarpSize;
using cuda::launch;
using cuda::LaunchShape;

constexpr int kThreads = 256;
constexpr int kChains = 8;   // independent sums a thread
constexpr int kUnroll = 16;  // instructions of a chain between two loop tests
constexpr int64_t kMmaProducts = 16 * 8 * 32;

__device__ __forceinline__ void multiply_add(double& sum, double x, double y) {
  asm volatile("fma.rn.f64 %0, %1, %2, %0;" : "+d"(sum) : "d"(x), "d"(y));
}
// One factor is the sum's own low half: a constant product would be taken out of the loop, leaving additions.
__device__ __forceinline__ void multiply_add(int64_t& sum, int32_t x, int32_t) {
  asm volatile("mad.wide.s32 %0, %1, %2, %0;" : "+l"(sum) : "r"(static_cast<int32_t>(sum)), "r"(x));
}

// seed: two random words a thread; out: one result a thread, so that nothing is left out.
template <typename Sum, typename Operand>
__global__ void __launch_bounds__(kThreads)
    peak_kernel(int64_t rounds, const int32_t* __restrict__ seed, double* __restrict__ out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const Operand x = static_cast<Operand>(seed[2 * thread]);
  const Operand y = static_cast<Operand>(seed[2 * thread + 1]);
  Sum sums[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sums[i] = static_cast<Sum>(i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < kUnroll; ++step) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) multiply_add(sums[i], x, y);
    }
  }
  double total = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) total += static_cast<double>(sums[i]);
  out[thread] = total;
}

__global__ void __launch_bounds__(kThreads)
    peak_int8_kernel(int64_t rounds, const int32_t* __restrict__ seed, double* __restrict__ out) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const uint32_t low = static_cast<uint32_t>(seed[2 * thread]);
  const uint32_t high = static_cast<uint32_t>(seed[2 * thread + 1]);
  const uint32_t a[4] = {low, high, low ^ high, low + high};
  const uint32_t b[2] = {low - high, low * 3};
  int32_t sums[kChains][4] = {};
  for (int64_t round = 0; round < rounds; ++round) {
#pragma unroll
    for (int step = 0; step < kUnroll; ++step) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) cuda::mma_s8_u8(sums[i], a, b);
    }
  }
  double total = 0;
#pragma unroll
  for (int i = 0; i < kChains; ++i) total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
  out[thread] = total;
}

}  // namespace

int64_t peak_threads(int64_t blocks) { return blocks * kThreads; }

int64_t peak_products(Unit unit, int64_t blocks, int64_t rounds) {
  const int64_t instructions = blocks * kThreads * rounds * kUnroll * kChains;
  return unit == Unit::kInt8 ? instructions / kWarpSize * kMmaProducts : instructions;
}

cudaError_t launch_peak(Unit unit, int64_t blocks, int64_t rounds, const int32_t* seed, double* out,
                        cudaStream_t stream) {
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  switch (unit) {
    case Unit::kDouble:
      return launch(MCFHE_KERNEL(peak_kernel<double, double>), shape, stream, rounds, seed, out);
    case Unit::kInt64:
      return launch(MCFHE_KERNEL(peak_kernel<int64_t, int32_t>), shape, stream, rounds, seed, out);
    case Unit::kInt8:
      return launch(MCFHE_KERNEL(peak_int8_kernel), shape, stream, rounds, seed, out);
  }
  return cudaErrorInvalidValue;
}

}  // namespace mcfhe::bench
