// Every CUDA launcher. Torch-free: raw device pointers, sizes and a stream.
//
// A launcher only launches: shapes were checked and outputs allocated by the caller, on the current device. It
// enqueues on `stream`, never synchronises, and returns the first error. Tensors are dense int64; residues are
// canonical, 0 <= r < b, and so is what comes back. A launch over no elements succeeds and enqueues nothing.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/params.h"

namespace mcfhe::cuda {

// Proved bounds on the weights of one layer; they choose the arithmetic.
struct WeightRange {
  int64_t max_abs;  // max |q|, below 2^31
  int64_t max_sum;  // max over outputs of sum |q|
};

// How sums of products are formed. All give the same residues wherever they are allowed.
enum class Arithmetic {
  kAuto,
  kDouble,       // double FMA; max_sum <= kDoubleMaxSum
  kInt64,        // int32 x int32 + int64; max_sum <= kInt64MaxSum
  kInt64MidSum,  // the same, reduced every few products; always allowed
  kInt8,         // int8 tensor cores on residues and weights split into bytes; never chosen by kAuto
};

// Outputs one thread of the tiled convolution holds in registers.
enum class ConvTile {
  kAuto,
  kSmall,   // 4 channels x 1 position
  kMedium,  // 8 x 4
  kLarge,   // 8 x 8
  kDirect,  // no shared memory, one output a thread: whatever no tile can hold
};

struct ConvOptions {
  Arithmetic arithmetic = Arithmetic::kAuto;
  ConvTile tile = ConvTile::kAuto;
};

// The limits are for the largest modulus, b <= 2^31 - 1, since moduli live on the device:
// 2^22 * (b - 1) < 2^53, so doubles hold every partial sum; (2^32 + 1) * (b - 1) < 2^63, so int64 does.
inline constexpr int64_t kMaxResidue = (int64_t{1} << 31) - 2;
inline constexpr int64_t kDoubleMaxSum = int64_t{1} << 22;
inline constexpr int64_t kInt64MaxSum = int64_t{1} << 32;

// conv2d, then bias, then the polynomial, in one launch.
cudaError_t launch_conv2d(const ConvParams& p, WeightRange range, ConvOptions options,
                          const int64_t* x,       // [L, C, H, W, S]
                          const int64_t* weight,  // [O, C / groups, KH, KW]
                          const int64_t* bias,    // [L, O], or null
                          const int64_t* poly,    // [L, 1 or O, degree + 1]; unused when p.poly_degree is 0
                          const int64_t* moduli,  // [L]
                          int64_t* y,             // [L, O, OH, OW, S]
                          cudaStream_t stream);

// linear, then bias, then the polynomial, in one launch. p has H = W = KH = KW = 1, groups = 1.
cudaError_t launch_linear(const ConvParams& p, WeightRange range, ConvOptions options,
                          const int64_t* x,       // [L, K, S]
                          const int64_t* weight,  // [O, K]
                          const int64_t* bias,    // [L, O], or null
                          const int64_t* poly,    // [L, 1 or O, degree + 1]; unused when p.poly_degree is 0
                          const int64_t* moduli,  // [L]
                          int64_t* y,             // [L, O, S]
                          cudaStream_t stream);

cudaError_t launch_sum_pool2d(const PoolParams& p,
                              const int64_t* x,       // [L, C, H, W, S]
                              const int64_t* factor,  // [L], or null for 1
                              const int64_t* moduli,  // [L]
                              int64_t* y,             // [L, C, OH, OW, S]
                              cudaStream_t stream);

cudaError_t launch_square(const PointwiseParams& p,
                          const int64_t* x,       // [L, C, inner]
                          const int64_t* moduli,  // [L]
                          int64_t* y,             // [L, C, inner]
                          cudaStream_t stream);

cudaError_t launch_poly(const PointwiseParams& p, int64_t degree, int64_t channel_stride,
                        const int64_t* x,             // [L, C, inner]
                        const int64_t* coefficients,  // [L, 1 or C, degree + 1]; channel_stride 0 for 1 row
                        const int64_t* moduli,        // [L]
                        int64_t* y,                   // [L, C, inner]
                        cudaStream_t stream);

cudaError_t launch_align_add(const PointwiseParams& p,
                             const int64_t* x,         // [L, C, inner]
                             const int64_t* y,         // [L, C, inner]
                             const int64_t* x_factor,  // [L], or null for 1
                             const int64_t* y_factor,  // [L], or null for 1
                             const int64_t* moduli,    // [L]
                             int64_t* z,               // [L, C, inner]
                             cudaStream_t stream);

cudaError_t launch_add_const(const PointwiseParams& p, int64_t channel_stride,
                             const int64_t* x,         // [L, C, inner]
                             const int64_t* constant,  // [L, 1 or C]; channel_stride 0 for 1, else 1
                             const int64_t* moduli,    // [L]
                             int64_t* y,               // [L, C, inner]
                             cudaStream_t stream);

// How many entries of x are not residues of their limb.
cudaError_t launch_count_out_of_range(const PointwiseParams& p,
                                      const int64_t* x,       // [L, C, inner], any values
                                      const int64_t* moduli,  // [L]
                                      int64_t* count,         // scalar
                                      cudaStream_t stream);

// (max |q|, max over rows of sum |q|) of any int64 matrix, sums clamped at 2^63 - 1, -2^63 counted as 2^63 - 1.
cudaError_t launch_weight_range(int64_t rows, int64_t columns,
                                const int64_t* weight,  // [rows, columns]
                                int64_t* range,         // [2]
                                cudaStream_t stream);

}  // namespace mcfhe::cuda
