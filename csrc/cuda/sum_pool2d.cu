// sum_pool2d: window sums, then one factor a limb. One output a thread; memory sets the pace.
#include <cuda_runtime.h>

#include <algorithm>

#include "fast_div.h"
#include "kernels/cuda_launch.h"
#include "launch.cuh"
#include "limb.cuh"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = 256;

struct PoolDivs {
  WideDiv stream, out_w, out_h;
};

__global__ void __launch_bounds__(kThreads) sum_pool2d_kernel(const PoolParams p, const PoolDivs by,
                                                              const int64_t* __restrict__ x,       // [L, C, H, W, S]
                                                              const int64_t* __restrict__ factor,  // [L] or null
                                                              const int64_t* __restrict__ moduli,  // [L]
                                                              int64_t* __restrict__ y) {           // [L, C, OH, OW, S]
  __shared__ Limb limb_slot;
  const int64_t limb_index = blockIdx.y;
  if (threadIdx.x == 0) limb_slot = make_limb(__ldg(moduli + limb_index));
  __syncthreads();
  const Limb limb = limb_slot;
  const uint32_t scale = factor == nullptr ? 1u : static_cast<uint32_t>(__ldg(factor + limb_index));

  const int64_t outputs = p.channels * p.out_h * p.out_w * p.stream;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < outputs; i += step) {
    const int64_t pixel = by.stream.quotient(i);
    const int64_t s = i - pixel * p.stream;
    const int64_t line = by.out_w.quotient(pixel);
    const int64_t channel = by.out_h.quotient(line);
    const int64_t row0 = (line - channel * p.out_h) * p.stride_h - p.padding_h;
    const int64_t col0 = (pixel - line * p.out_w) * p.stride_w - p.padding_w;
    const int64_t row1 = row0 + p.kernel_h < p.height ? row0 + p.kernel_h : p.height;
    const int64_t col1 = col0 + p.kernel_w < p.width ? col0 + p.kernel_w : p.width;
    const int64_t image = (limb_index * p.channels + channel) * p.height;
    uint64_t sum = 0;
    for (int64_t row = row0 > 0 ? row0 : 0; row < row1; ++row) {
      for (int64_t col = col0 > 0 ? col0 : 0; col < col1; ++col) {
        sum += static_cast<uint64_t>(__ldg(x + ((image + row) * p.width + col) * p.stream + s));
      }
    }
    uint32_t v = barrett(sum, limb);
    if (factor != nullptr) v = mul_add_mod(v, scale, 0, limb);
    y[limb_index * outputs + i] = static_cast<int64_t>(v);
  }
}

}  // namespace

cudaError_t launch_sum_pool2d(const PoolParams& p, const int64_t* x, const int64_t* factor, const int64_t* moduli,
                              int64_t* y, cudaStream_t stream) {
  const int64_t outputs = p.channels * p.out_h * p.out_w * p.stream;
  if (p.limbs * outputs == 0) return cudaSuccess;
  if (p.limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const int64_t blocks = std::min(ceil_div<int64_t>(outputs, kThreads), kMaxGridX);
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.limbs)), dim3(kThreads)};
  return launch(MCFHE_KERNEL(sum_pool2d_kernel), shape, stream, p,
                PoolDivs{WideDiv(p.stream), WideDiv(p.out_w), WideDiv(p.out_h)}, x, factor, moduli, y);
}

}  // namespace mcfhe::cuda
