// The convolution one would write first. See conv2d_naive.h.
#include "conv2d_naive.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/launch.cuh"

namespace mcfhe::baseline {
namespace {

using cuda::ceil_div;
using cuda::kMaxGridX;
using cuda::launch;
using cuda::LaunchShape;

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads, 3)
    conv2d_naive_kernel(const ConvParams p,
                        const int64_t* __restrict__ x,       // [L, C, H, W, S]
                        const int64_t* __restrict__ weight,  // [O, C / groups, KH, KW]
                        const int64_t* __restrict__ moduli,  // [L]
                        int64_t* __restrict__ y) {           // [L, O, OH, OW, S]
  const int64_t outputs = p.limbs * p.out_channels * p.out_h * p.out_w * p.stream;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < outputs; i += step) {
    const int64_t s = i % p.stream;
    const int64_t out_col = i / p.stream % p.out_w;
    const int64_t out_row = i / (p.stream * p.out_w) % p.out_h;
    const int64_t o = i / (p.stream * p.out_w * p.out_h) % p.out_channels;
    const int64_t l = i / (p.stream * p.out_w * p.out_h * p.out_channels);
    const int64_t channels = p.in_channels / p.groups;
    const int64_t channel0 = o / (p.out_channels / p.groups) * channels;
    const int64_t b = moduli[l];
    int64_t sum = 0;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
        for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
          const int64_t row = out_row * p.stride_h + kh * p.dilation_h - p.padding_h;
          const int64_t col = out_col * p.stride_w + kw * p.dilation_w - p.padding_w;
          if (row < 0 || row >= p.height || col < 0 || col >= p.width) continue;
          const int64_t q = weight[((o * channels + c) * p.kernel_h + kh) * p.kernel_w + kw];
          const int64_t r = x[(((l * p.in_channels + channel0 + c) * p.height + row) * p.width + col) * p.stream + s];
          sum = (sum + q * r) % b;
        }
      }
    }
    y[i] = sum < 0 ? sum + b : sum;
  }
}

}  // namespace

cudaError_t launch_conv2d_naive(const ConvParams& p, const int64_t* x, const int64_t* weight, const int64_t* moduli,
                                int64_t* y, cudaStream_t stream) {
  const int64_t outputs = p.limbs * p.out_channels * p.out_h * p.out_w * p.stream;
  if (outputs == 0) return cudaSuccess;
  const LaunchShape shape{dim3(static_cast<unsigned>(std::min(ceil_div<int64_t>(outputs, kThreads), kMaxGridX))),
                          dim3(kThreads)};
  return launch(MCFHE_KERNEL(conv2d_naive_kernel), shape, stream, p, x, weight, moduli, y);
}

}  // namespace mcfhe::baseline
