// square, poly, align_add and add_const: one residue in, one out; memory sets the pace.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "fast_div.h"
#include "kernels/cuda_launch.h"
#include "launch.cuh"
#include "limb.cuh"
#include "poly.cuh"
#include "residues.cuh"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxSteps = 4;     // accesses a thread makes along a row ...
constexpr int64_t kFullGrid = 1024;  // ... once there are blocks enough to fill the device

struct Square {
  const int64_t* x;
  int64_t* y;

  template <int kWidth>
  __device__ void apply(int64_t index, int64_t /*l*/, int64_t /*c*/, const Limb& m) const {
    uint32_t v[kWidth];
    load_residues(x, index, v);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = mul_add_mod(v[i], v[i], 0, m);
    store_residues(y, index, v);
  }
};

struct Poly {
  const int64_t* x;
  PolyTable table;  // [L, 1 or C, degree + 1]
  int64_t channels;
  int64_t* y;

  template <int kWidth>
  __device__ void apply(int64_t index, int64_t l, int64_t c, const Limb& m) const {
    uint32_t v[kWidth];
    load_residues(x, index, v);
    apply_poly(v, table.row(l, c, channels), table.degree, m);
    store_residues(y, index, v);
  }
};

struct AlignAdd {
  const int64_t* x;
  const int64_t* y;
  const int64_t* x_factor;  // [L] or null
  const int64_t* y_factor;  // [L] or null
  int64_t* z;

  template <int kWidth>
  __device__ void apply(int64_t index, int64_t l, int64_t /*c*/, const Limb& m) const {
    uint32_t a[kWidth];
    uint32_t b[kWidth];
    load_residues(x, index, a);
    load_residues(y, index, b);
    const uint64_t fa = x_factor == nullptr ? 1 : static_cast<uint64_t>(__ldg(x_factor + l));
    const uint64_t fb = y_factor == nullptr ? 1 : static_cast<uint64_t>(__ldg(y_factor + l));
    // Both products stay below 2^62.
#pragma unroll
    for (int i = 0; i < kWidth; ++i) a[i] = barrett(fa * a[i] + fb * b[i], m);
    store_residues(z, index, a);
  }
};

struct AddConst {
  const int64_t* x;
  const int64_t* constant;  // [L, 1 or C]
  int64_t channel_stride;
  int64_t channels;
  int64_t* y;

  template <int kWidth>
  __device__ void apply(int64_t index, int64_t l, int64_t c, const Limb& m) const {
    uint32_t v[kWidth];
    load_residues(x, index, v);
    const int64_t at = channel_stride == 0 ? l : l * channels + c;
    const uint32_t a = static_cast<uint32_t>(__ldg(constant + at));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = add_mod(v[i], a, m);
    store_residues(y, index, v);
  }
};

// To the first `head` of every `stream` entries, the innermost axis, of which an access of kWidth lies in one.
struct AddConstToHead {
  const int64_t* x;
  const int64_t* constant;  // [L, 1 or C]
  int64_t channel_stride;
  int64_t channels;
  WideDiv stream;
  int64_t head;
  int64_t* y;

  template <int kWidth>
  __device__ void apply(int64_t index, int64_t l, int64_t c, const Limb& m) const {
    uint32_t v[kWidth];
    load_residues(x, index, v);
    const int64_t at = channel_stride == 0 ? l : l * channels + c;
    const uint32_t a = static_cast<uint32_t>(__ldg(constant + at));
    const int64_t entry = index - stream.quotient(index) * static_cast<int64_t>(stream.divisor);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) v[i] = entry + i < head ? add_mod(v[i], a, m) : v[i];
    store_residues(y, index, v);
  }
};

// x seen as [limbs, rows, columns]: a row has one constant, a limb one modulus. Threads (x, y) take columns and rows,
// a block a run of steps * blockDim.x * kWidth columns; limbs go over blockIdx.z.
template <typename Op, int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    pointwise_kernel(const int64_t limbs, const int64_t rows, const int64_t columns, const int steps, const Op op,
                     const int64_t* __restrict__ moduli) {  // [L]
  __shared__ Limb limb_slot;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
  const int64_t row_step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  const int64_t column_step = static_cast<int64_t>(blockDim.x) * kWidth;
  const int64_t column0 = blockIdx.x * column_step * steps + static_cast<int64_t>(threadIdx.x) * kWidth;
  for (int64_t l = blockIdx.z; l < limbs; l += gridDim.z) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) limb_slot = make_limb(__ldg(moduli + l));
    __syncthreads();
    const Limb limb = limb_slot;
    for (int64_t row = row0; row < rows; row += row_step) {
      const int64_t first = (l * rows + row) * columns;
      for (int i = 0; i < steps; ++i) {
        const int64_t column = column0 + i * column_step;
        if (column < columns) op.template apply<kWidth>(first + column, l, row, limb);
      }
    }
  }
}

// Columns first, up to a block's width; what is left of the block goes to rows.
template <typename Op, int kWidth>
cudaError_t launch_width(int64_t limbs, int64_t rows, int64_t columns, const Op& op, const int64_t* moduli,
                         cudaStream_t stream) {
  const int64_t units = columns / kWidth;
  int64_t block_x = 1;
  while (block_x < kThreads && block_x < units) block_x *= 2;
  const int64_t block_y = kThreads / block_x;
  const int64_t blocks = ceil_div(units, block_x);
  const int64_t steps = std::clamp<int64_t>(blocks * limbs / kFullGrid, 1, kMaxSteps);
  const int64_t grid_x = ceil_div(blocks, steps);
  if (grid_x > kMaxGridX) return cudaErrorInvalidConfiguration;
  const int64_t grid_y = std::min(ceil_div(rows, block_y), kMaxGridYZ);
  const LaunchShape shape{dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y),
                               static_cast<unsigned>(std::min(limbs, kMaxGridYZ))),
                          dim3(static_cast<unsigned>(block_x), static_cast<unsigned>(block_y))};
  return launch(MCFHE_KERNEL(pointwise_kernel<Op, kWidth>), shape, stream, limbs, rows, columns,
                static_cast<int>(steps), op, moduli);
}

// pairs: two residues an access are possible.
template <typename Op>
cudaError_t launch_pointwise(const PointwiseParams& p, bool by_channel, bool pairs, const Op& op, const int64_t* moduli,
                             cudaStream_t stream) {
  if (p.limbs * p.channels * p.inner == 0) return cudaSuccess;
  const int64_t rows = by_channel ? p.channels : 1;
  const int64_t columns = by_channel ? p.inner : p.channels * p.inner;
  if (pairs && columns % 2 == 0) return launch_width<Op, 2>(p.limbs, rows, columns, op, moduli, stream);
  return launch_width<Op, 1>(p.limbs, rows, columns, op, moduli, stream);
}

}  // namespace

cudaError_t launch_square(const PointwiseParams& p, const int64_t* x, const int64_t* moduli, int64_t* y,
                          cudaStream_t stream) {
  return launch_pointwise(p, false, aligned16({x, y}), Square{x, y}, moduli, stream);
}

cudaError_t launch_poly(const PointwiseParams& p, int64_t degree, int64_t channel_stride, const int64_t* x,
                        const int64_t* coefficients, const int64_t* moduli, int64_t* y, cudaStream_t stream) {
  const Poly op{x, {coefficients, degree, channel_stride}, p.channels, y};
  return launch_pointwise(p, channel_stride != 0, aligned16({x, y}), op, moduli, stream);
}

cudaError_t launch_align_add(const PointwiseParams& p, const int64_t* x, const int64_t* y, const int64_t* x_factor,
                             const int64_t* y_factor, const int64_t* moduli, int64_t* z, cudaStream_t stream) {
  const AlignAdd op{x, y, x_factor, y_factor, z};
  return launch_pointwise(p, false, aligned16({x, y, z}), op, moduli, stream);
}

cudaError_t launch_add_const(const PointwiseParams& p, int64_t channel_stride, int64_t stream_size, int64_t head,
                             const int64_t* x, const int64_t* constant, const int64_t* moduli, int64_t* y,
                             cudaStream_t stream) {
  const bool aligned = aligned16({x, y});
  if (head == stream_size) {
    const AddConst op{x, constant, channel_stride, p.channels, y};
    return launch_pointwise(p, channel_stride != 0, aligned, op, moduli, stream);
  }
  const AddConstToHead op{x, constant, channel_stride, p.channels, WideDiv(stream_size), head, y};
  return launch_pointwise(p, channel_stride != 0, aligned && stream_size % 2 == 0, op, moduli, stream);
}

}  // namespace mcfhe::cuda
