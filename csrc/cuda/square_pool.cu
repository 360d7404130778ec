// tensor_square with the pool behind it: what a quadratic gives is summed over windows without being stored. Memory
// sets the pace, and less than half as much of it is moved as by one kernel after the other.
//
// Sums come first: over a window of k places, the sum of A2 z^2 + A1 z + A0 is A2 (sum of z^2) + A1 (sum of z) + k A0,
// and products of canonical residues add up exactly in 64 bits: one reduction a component and window, not a place.
#include <cuda_runtime.h>

#include <cstdint>

#include "fast_div.h"
#include "kernels/cuda_launch.h"
#include "launch.cuh"
#include "limb.cuh"
#include "residues.cuh"
#include "tensor_square.cuh"

namespace mcfhe::cuda {
namespace {

struct Sums {
  uint64_t squares0, products, squares1;  // of z0^2, z0 z1, z1^2
  uint64_t first, second;                 // of z0 and z1, below 2^51: windows have fewer than 2^20 places (checked)
};

struct Work {
  TensorSquareParams p;
  int64_t out_h, out_w;
  WideDiv by_out_w, by_out_h;
  ChannelTable shift, coefficients;
  const int64_t* x;  // [L, C, H, W, 2, n]
  int64_t* y;        // [L, C, OH, OW, 3, n]

  // most: products that a sum holds beside a canonical residue.
  template <int kWidth>
  __device__ __forceinline__ void apply(int64_t l, int64_t row, int64_t i, const Limb& m, int64_t most) const {
    const int64_t line = by_out_w.quotient(row);
    const int64_t channel = by_out_h.quotient(line);
    const int64_t top = (line - channel * out_h) * p.pool.h;
    const int64_t left = (row - line * out_w) * p.pool.w;
    const int64_t place = (l * p.channels + channel) * p.positions + top * p.width + left;
    const uint32_t added =
        shift.table == nullptr ? 0u : static_cast<uint32_t>(__ldg(shift.row(l, channel, p.channels)));
    Sums s[kWidth] = {};
    int64_t rest = most;
    for (int64_t r = 0; r < p.pool.h; ++r) {
#pragma unroll 2
      for (int64_t c = 0; c < p.pool.w; ++c) {
        uint32_t z0[kWidth];
        uint32_t z1[kWidth];
        const int64_t at = (place + r * p.width + c) * 2;
        load_residues(x, at * p.n + i, z0);
        load_residues(x, (at + 1) * p.n + i, z1);
        if (rest-- == 0) {
#pragma unroll
          for (int k = 0; k < kWidth; ++k) {
            s[k].squares0 = barrett(s[k].squares0, m);
            s[k].products = barrett(s[k].products, m);
            s[k].squares1 = barrett(s[k].squares1, m);
          }
          rest = most - 1;
        }
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          z0[k] = add_mod(z0[k], added, m);
          s[k].squares0 += static_cast<uint64_t>(z0[k]) * z0[k];
          s[k].products += static_cast<uint64_t>(z0[k]) * z1[k];
          s[k].squares1 += static_cast<uint64_t>(z1[k]) * z1[k];
          s[k].first += z0[k];
          s[k].second += z1[k];
        }
      }
    }
    store(s, (l * p.channels * out_h * out_w + row) * 3, i, l, channel, m);
  }

  template <int kWidth>
  __device__ __forceinline__ void store(const Sums (&s)[kWidth], int64_t at, int64_t i, int64_t l, int64_t channel,
                                        const Limb& m) const {
    uint32_t y0[kWidth];
    uint32_t y1[kWidth];
    uint32_t y2[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const uint32_t product = barrett(s[k].products, m);
      y0[k] = barrett(s[k].squares0, m);
      y1[k] = add_mod(product, product, m);
      y2[k] = barrett(s[k].squares1, m);
    }
    if (coefficients.table != nullptr) {
      const int64_t* const a = coefficients.row(l, channel, p.channels);
      const uint32_t places = barrett(static_cast<uint64_t>(p.pool.h * p.pool.w), m);
      const uint32_t a0 = mul_add_mod(static_cast<uint32_t>(__ldg(a)), places, 0, m);
      const uint32_t a1 = static_cast<uint32_t>(__ldg(a + 1));
      const uint32_t a2 = static_cast<uint32_t>(__ldg(a + 2));
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        y0[k] = mul_add_mod(a2, y0[k], mul_add_mod(a1, barrett(s[k].first, m), a0, m), m);
        y1[k] = mul_add_mod(a2, y1[k], mul_add_mod(a1, barrett(s[k].second, m), 0, m), m);
        y2[k] = mul_add_mod(a2, y2[k], 0, m);
      }
    }
    store_residues(y, at * p.n + i, y0);
    store_residues(y, (at + 1) * p.n + i, y1);
    store_residues(y, (at + 2) * p.n + i, y2);
  }
};

template <int kWidth>
__global__ void __launch_bounds__(kSquareThreads, 3)
    tensor_square_pool_kernel(const Work work, const int64_t* __restrict__ moduli) {  // [L]
  __shared__ Limb limb_slot;
  __shared__ int64_t most_slot;
  const int64_t rows = work.p.channels * work.out_h * work.out_w;
  const int64_t row_step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  for (int64_t l = blockIdx.z; l < work.p.limbs; l += gridDim.z) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      limb_slot = make_limb(__ldg(moduli + l));
      const uint64_t top = limb_slot.b - 1;
      const uint64_t most = (~uint64_t{0} - top) / (top * top);
      most_slot = static_cast<int64_t>(most >> 63 == 0 ? most : most >> 1);  // b = 2
    }
    __syncthreads();
    if (i >= work.p.n) continue;
    const Limb limb = limb_slot;
    const int64_t most = most_slot;
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += row_step) {
      work.template apply<kWidth>(l, row, i, limb, most);
    }
  }
}

template <int kWidth>
cudaError_t launch_width(const Work& work, const int64_t* moduli, cudaStream_t stream) {
  const TensorSquareParams& p = work.p;
  const LaunchShape shape = row_shape(p.n, kWidth, p.channels * work.out_h * work.out_w, p.limbs);
  if (shape.grid.x == 0) return cudaErrorInvalidConfiguration;
  return launch(MCFHE_KERNEL(tensor_square_pool_kernel<kWidth>), shape, stream, work, moduli);
}

}  // namespace

cudaError_t launch_tensor_square_pool(const TensorSquareParams& p, const int64_t* x, const int64_t* shift,
                                      const int64_t* coefficients, const int64_t* moduli, int64_t* y,
                                      cudaStream_t stream) {
  if (p.limbs * p.channels * p.positions * p.n == 0) return cudaSuccess;
  const int64_t out_h = p.positions / p.width / p.pool.h;
  const int64_t out_w = p.width / p.pool.w;
  const Work work{p,
                  out_h,
                  out_w,
                  WideDiv(out_w),
                  WideDiv(out_h),
                  {shift, p.shift_channel_stride, 1},
                  {coefficients, p.coefficients_channel_stride, 3},
                  x,
                  y};
  if (p.n % 2 == 0 && aligned16({x, y})) return launch_width<2>(work, moduli, stream);
  return launch_width<1>(work, moduli, stream);
}

}  // namespace mcfhe::cuda
