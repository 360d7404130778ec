// conv2d with one output a thread and no shared memory: for windows that no tile can hold.
#include <cuda_runtime.h>

#include <algorithm>

#include "arithmetic.h"
#include "conv2d_kernels.h"
#include "fast_div.h"
#include "launch.cuh"
#include "limb.cuh"
#include "poly.cuh"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads)
    conv2d_direct_kernel(const ConvParams p, const WideDiv by_stream, const WideDiv by_width,
                         const int32_t reduce_every,
                         const int64_t* __restrict__ x,       // [L, C, H, W, S]
                         const int64_t* __restrict__ weight,  // [O, C / groups, KH, KW]
                         const int64_t* __restrict__ bias,    // [L, O] or null
                         const PolyTable poly,                // [L, 1 or O, degree + 1]
                         const int64_t* __restrict__ moduli,  // [L]
                         int64_t* __restrict__ y) {           // [L, O, OH, OW, S]
  __shared__ Limb limb_slot;
  const int64_t limb_index = blockIdx.y;
  if (threadIdx.x == 0) limb_slot = make_limb(__ldg(moduli + limb_index));
  __syncthreads();
  const Limb limb = limb_slot;

  const int64_t plane = p.out_h * p.out_w * p.stream;
  const int64_t position = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (position >= plane) return;
  const int64_t pixel = by_stream.quotient(position);
  const int64_t s = position - pixel * p.stream;
  const int64_t out_row = by_width.quotient(pixel);
  const int64_t in_row0 = out_row * p.stride_h - p.padding_h;
  const int64_t in_col0 = (pixel - out_row * p.out_w) * p.stride_w - p.padding_w;
  const int64_t channels = p.in_channels / p.groups;
  const int64_t outs = p.out_channels / p.groups;

  for (int64_t o = blockIdx.z; o < p.out_channels; o += gridDim.z) {
    const int64_t channel0 = o / outs * channels;
    int64_t sum = 0;
    int pending = 0;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t image = (limb_index * p.in_channels + channel0 + c) * p.height;
      for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
        const int64_t in_row = in_row0 + kh * p.dilation_h;
        if (in_row < 0 || in_row >= p.height) continue;
        for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
          const int64_t in_col = in_col0 + kw * p.dilation_w;
          if (in_col < 0 || in_col >= p.width) continue;
          const int64_t q = __ldg(weight + ((o * channels + c) * p.kernel_h + kh) * p.kernel_w + kw);
          const int64_t r = __ldg(x + ((image + in_row) * p.width + in_col) * p.stream + s);
          sum += static_cast<int64_t>(static_cast<int32_t>(q)) * static_cast<int32_t>(r);
          if (++pending == reduce_every) {
            pending = 0;
            sum = reduce_any(sum, limb);
          }
        }
      }
    }
    uint32_t v[1] = {reduce_any(sum, limb)};
    if (bias != nullptr) {
      v[0] = add_mod(v[0], static_cast<uint32_t>(__ldg(bias + limb_index * p.out_channels + o)), limb);
    }
    if (poly.degree > 0) apply_poly(v, poly.row(limb_index, o, p.out_channels), poly.degree, limb);
    y[(limb_index * p.out_channels + o) * plane + position] = static_cast<int64_t>(v[0]);
  }
}

}  // namespace

cudaError_t launch_conv2d_direct(const ConvParams& p, WeightRange range, const ConvTensors& tensors,
                                 cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(p.out_h * p.out_w * p.stream, kThreads);
  if (blocks > kMaxGridX || p.limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.limbs),
                               static_cast<unsigned>(std::min(p.out_channels, kMaxGridYZ))),
                          dim3(kThreads)};
  const PolyTable poly{tensors.poly, p.poly_degree, p.poly_channel_stride};
  return launch(MCFHE_KERNEL(conv2d_direct_kernel), shape, stream, p, WideDiv(p.stream), WideDiv(p.out_w),
                products_between_reductions(range), tensors.x, tensors.weight, tensors.bias, poly, tensors.moduli,
                tensors.y);
}

}  // namespace mcfhe::cuda
