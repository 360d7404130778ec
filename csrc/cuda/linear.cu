// linear: short streams split the sum over lanes and warps; long ones are a 1 x 1 convolution.
#include <cuda_runtime.h>

#include "arithmetic.h"
#include "block_reduce.cuh"
#include "conv2d_kernels.h"
#include "limb.cuh"
#include "poly.cuh"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kOut = kWarps;             // outputs a block: one a warp in the last step
constexpr int kUnroll = 4;               // steps whose loads are in flight together
constexpr int64_t kMaxSplitStream = 16;  // above, a warp would leave nothing to split

// A warp's lanes are `stream_lanes` stream entries by 32 / stream_lanes features, so that a warp reads one contiguous
// run of x; the block's warps take turns in features. Sums are int64: loads, not products, set the pace here.
template <bool kMidSum>
__global__ void __launch_bounds__(kThreads)
    linear_split_kernel(const ConvParams p, const int stream_lanes, const int32_t reduce_every,
                        const int64_t* __restrict__ x,       // [L, K, S]
                        const int64_t* __restrict__ weight,  // [O, K]
                        const int64_t* __restrict__ bias,    // [L, O] or null
                        const PolyTable poly,                // [L, 1 or O, degree + 1]
                        const int64_t* __restrict__ moduli,  // [L]
                        int64_t* __restrict__ y) {           // [L, O, S]
  __shared__ Limb limb_slot;
  __shared__ unsigned long long partial[kWarps][kOut][kMaxSplitStream];

  const int64_t limb_index = blockIdx.y;
  const int64_t out0 = static_cast<int64_t>(blockIdx.x) * kOut;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / kWarpSize;
  const int lane = thread % kWarpSize;
  const int s = lane % stream_lanes;
  const int step = kThreads / stream_lanes;
  const int64_t features = p.in_channels;
  const int64_t k0 = thread / stream_lanes;
  if (thread == 0) limb_slot = make_limb(__ldg(moduli + limb_index));
  __syncthreads();
  const Limb limb = limb_slot;

  const int64_t* const from = x + limb_index * features * p.stream + s;
  int64_t sum[kOut] = {};
  [[maybe_unused]] int pending = 0;
  for (int64_t k = k0; k < features; k += kUnroll * step) {
    int32_t r[kUnroll];
    int32_t w[kUnroll][kOut];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = k + u * step;
      const bool inside = at < features && s < p.stream;
      r[u] = inside ? static_cast<int32_t>(__ldg(from + at * p.stream)) : 0;
#pragma unroll
      for (int i = 0; i < kOut; ++i) {
        const bool used = inside && out0 + i < p.out_channels;
        w[u][i] = used ? static_cast<int32_t>(__ldg(weight + (out0 + i) * features + at)) : 0;
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int i = 0; i < kOut; ++i) sum[i] += static_cast<int64_t>(w[u][i]) * r[u];
      if constexpr (kMidSum) {
        if (++pending == reduce_every) {
          pending = 0;
#pragma unroll
          for (int i = 0; i < kOut; ++i) sum[i] = reduce_any(sum[i], limb);
        }
      }
    }
  }

  // At most 128 canonical values meet: their sum stays below 2^38.
#pragma unroll
  for (int i = 0; i < kOut; ++i) {
    const unsigned long long all = warp_combine(reduce_any(sum[i], limb), Plus{}, stream_lanes);
    if (lane < stream_lanes) partial[warp][i][s] = all;
  }
  __syncthreads();

  const int64_t o = out0 + warp;
  if (o >= p.out_channels || lane >= p.stream) return;
  uint64_t total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += partial[i][warp][lane];
  uint32_t v[1] = {barrett(total, limb)};
  if (bias != nullptr) {
    v[0] = add_mod(v[0], static_cast<uint32_t>(__ldg(bias + limb_index * p.out_channels + o)), limb);
  }
  if (poly.degree > 0) apply_poly(v, poly.row(limb_index, o, p.out_channels), poly.degree, limb);
  y[(limb_index * p.out_channels + o) * p.stream + lane] = static_cast<int64_t>(v[0]);
}

cudaError_t launch_split(const ConvParams& p, WeightRange range, bool mid_sum, const ConvTensors& tensors,
                         cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(p.out_channels, kOut);
  if (blocks > kMaxGridX || p.limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.limbs)), dim3(kThreads)};
  const PolyTable poly{tensors.poly, p.poly_degree, p.poly_channel_stride};
  int stream_lanes = 1;
  while (stream_lanes < p.stream) stream_lanes *= 2;
  const int32_t reduce_every = products_between_reductions(range);
  if (mid_sum) {
    return launch(MCFHE_KERNEL(linear_split_kernel<true>), shape, stream, p, stream_lanes, reduce_every, tensors.x,
                  tensors.weight, tensors.bias, poly, tensors.moduli, tensors.y);
  }
  return launch(MCFHE_KERNEL(linear_split_kernel<false>), shape, stream, p, stream_lanes, reduce_every, tensors.x,
                tensors.weight, tensors.bias, poly, tensors.moduli, tensors.y);
}

}  // namespace

cudaError_t launch_linear(const ConvParams& p, WeightRange range, ConvOptions options, const int64_t* x,
                          const int64_t* weight, const int64_t* bias, const int64_t* poly, const int64_t* moduli,
                          int64_t* y, cudaStream_t stream) {
  if (p.limbs * p.out_channels * p.stream == 0) return cudaSuccess;
  const bool free_tile = options.tile == ConvTile::kAuto;
  const bool int64_only = options.arithmetic == Arithmetic::kInt64;
  const bool free_arithmetic =
      options.arithmetic == Arithmetic::kAuto || int64_only || options.arithmetic == Arithmetic::kInt64MidSum;
  if (p.stream > kMaxSplitStream || !free_tile || !free_arithmetic) {
    return launch_conv2d(p, range, options, x, weight, bias, poly, moduli, y, stream);
  }
  const bool fits = is_allowed(Arithmetic::kInt64, range);
  if (int64_only && !fits) return cudaErrorInvalidValue;
  const bool mid_sum = !fits || options.arithmetic == Arithmetic::kInt64MidSum;
  return launch_split(p, range, mid_sum, {x, weight, bias, poly, nullptr, moduli, y}, stream);
}

}  // namespace mcfhe::cuda
