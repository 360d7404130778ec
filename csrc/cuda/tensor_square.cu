// tensor_square: the square, or a polynomial of degree 2, of ciphertexts of two components. Memory sets the pace.
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

struct Work {
  TensorSquareParams p;
  WideDiv positions;
  ChannelTable shift, coefficients;
  const int64_t* x;  // [L, C, positions, 2, n]
  int64_t* y;        // [L, C, positions, 3, n]

  template <int kWidth>
  __device__ __forceinline__ void apply(int64_t l, int64_t row, int64_t i, const Limb& m) const {
    const int64_t at = l * p.channels * p.positions + row;
    uint32_t z0[kWidth];
    uint32_t z1[kWidth];
    load_residues(x, at * 2 * p.n + i, z0);
    load_residues(x, (at * 2 + 1) * p.n + i, z1);
    const int64_t channel = positions.quotient(row);
    if (shift.table != nullptr) {
      const uint32_t add = static_cast<uint32_t>(__ldg(shift.row(l, channel, p.channels)));
#pragma unroll
      for (int k = 0; k < kWidth; ++k) z0[k] = add_mod(z0[k], add, m);
    }
    uint32_t y0[kWidth];
    uint32_t y1[kWidth];
    uint32_t y2[kWidth];
    if (coefficients.table == nullptr) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        y0[k] = mul_add_mod(z0[k], z0[k], 0, m);
        y1[k] = mul_add_mod(z0[k] + z0[k], z1[k], 0, m);  // 2 z0 is below 2^32
        y2[k] = mul_add_mod(z1[k], z1[k], 0, m);
      }
    } else {
      const int64_t* const a = coefficients.row(l, channel, p.channels);
      const uint32_t a0 = static_cast<uint32_t>(__ldg(a));
      const uint32_t a1 = static_cast<uint32_t>(__ldg(a + 1));
      const uint32_t a2 = static_cast<uint32_t>(__ldg(a + 2));
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const uint32_t u = mul_add_mod(a2, z0[k], 0, m);
        const uint32_t slope = add_mod(u, a1, m);
        y0[k] = mul_add_mod(slope, z0[k], a0, m);
        y1[k] = mul_add_mod(add_mod(slope, u, m), z1[k], 0, m);
        y2[k] = mul_add_mod(mul_add_mod(a2, z1[k], 0, m), z1[k], 0, m);
      }
    }
    store_residues(y, at * 3 * p.n + i, y0);
    store_residues(y, (at * 3 + 1) * p.n + i, y1);
    store_residues(y, (at * 3 + 2) * p.n + i, y2);
  }
};

// A row is a [channel, position].
template <int kWidth>
__global__ void __launch_bounds__(kSquareThreads, 4)
    tensor_square_kernel(const Work work, const int64_t* __restrict__ moduli) {  // [L]
  __shared__ Limb limb_slot;
  const int64_t rows = work.p.channels * work.p.positions;
  const int64_t row_step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  for (int64_t l = blockIdx.z; l < work.p.limbs; l += gridDim.z) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) limb_slot = make_limb(__ldg(moduli + l));
    __syncthreads();
    if (i >= work.p.n) continue;
    const Limb limb = limb_slot;
    for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += row_step) {
      work.template apply<kWidth>(l, row, i, limb);
    }
  }
}

template <int kWidth>
cudaError_t launch_width(const Work& work, const int64_t* moduli, cudaStream_t stream) {
  const TensorSquareParams& p = work.p;
  const LaunchShape shape = row_shape(p.n, kWidth, p.channels * p.positions, p.limbs);
  if (shape.grid.x == 0) return cudaErrorInvalidConfiguration;
  return launch(MCFHE_KERNEL(tensor_square_kernel<kWidth>), shape, stream, work, moduli);
}

}  // namespace

cudaError_t launch_tensor_square(const TensorSquareParams& p, const int64_t* x, const int64_t* shift,
                                 const int64_t* coefficients, const int64_t* moduli, int64_t* y, cudaStream_t stream) {
  if (p.limbs * p.channels * p.positions * p.n == 0) return cudaSuccess;
  const Work work{
      p, WideDiv(p.positions), {shift, p.shift_channel_stride, 1}, {coefficients, p.coefficients_channel_stride, 3}, x,
      y};
  if (p.n % 2 == 0 && aligned16({x, y})) return launch_width<2>(work, moduli, stream);
  return launch_width<1>(work, moduli, stream);
}

}  // namespace mcfhe::cuda
