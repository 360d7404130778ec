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
  kSmall,   // 4 channels x 1 position, with a pool x 4
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

// conv2d, then bias, then the polynomial, then the sum of every window times a factor, in one launch.
// cudaErrorNotSupported, with nothing enqueued, for windows of other than kPoolWindow outputs and where no tile holds a
// whole window (nor does kDirect ever): then launch_conv2d and launch_sum_pool2d are what computes it.
inline constexpr int kPoolWindow = 4;
cudaError_t launch_conv2d_pool(const ConvParams& p, PoolWindow pool, WeightRange range, ConvOptions options,
                               const int64_t* x,       // [L, C, H, W, S]
                               const int64_t* weight,  // [O, C / groups, KH, KW]
                               const int64_t* bias,    // [L, O], or null
                               const int64_t* poly,    // [L, 1 or O, degree + 1]; unused when p.poly_degree is 0
                               const int64_t* factor,  // [L], or null for 1
                               const int64_t* moduli,  // [L]
                               int64_t* y,             // [L, O, OH / pool.h, OW / pool.w, S]
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

// To the first `head` of every `stream_size` entries; stream_size divides inner, 0 <= head <= stream_size.
cudaError_t launch_add_const(const PointwiseParams& p, int64_t channel_stride, int64_t stream_size, int64_t head,
                             const int64_t* x,         // [L, C, inner]
                             const int64_t* constant,  // [L, 1 or C]; channel_stride 0 for 1, else 1
                             const int64_t* moduli,    // [L]
                             int64_t* y,               // [L, C, inner]
                             cudaStream_t stream);

// (z0, z1) = (x0 + shift, x1) -> (A2 z0^2 + A1 z0 + A0, (2 A2 z0 + A1) z1, A2 z1^2).
cudaError_t launch_tensor_square(const TensorSquareParams& p,
                                 const int64_t* x,             // [L, C, positions, 2, n]
                                 const int64_t* shift,         // [L, 1 or C], or null for 0
                                 const int64_t* coefficients,  // [L, 1 or C, 3], or null for (0, 0, 1)
                                 const int64_t* moduli,        // [L]
                                 int64_t* y,                   // [L, C, positions, 3, n]
                                 cudaStream_t stream);
// The same, then the sums of windows of p.pool; positions are [H, W].
cudaError_t launch_tensor_square_pool(const TensorSquareParams& p,
                                      const int64_t* x,             // [L, C, H, W, 2, n]
                                      const int64_t* shift,         // [L, 1 or C], or null for 0
                                      const int64_t* coefficients,  // [L, 1 or C, 3], or null for (0, 0, 1)
                                      const int64_t* moduli,        // [L]
                                      int64_t* y,                   // [L, C, H / h, W / w, 3, n]
                                      cudaStream_t stream);

// The lattice ops below work on polynomials of n = 8, 16, .., 32768 residues. Tables are those of mcfhe.lattice.ring;
// the moduli are distinct primes, 1 modulo 2n. x, keys, tables, workspace and y are aligned to 16 bytes. Values and
// tables are trusted, since they are on the device.

cudaError_t launch_ntt(const RingParams& p, bool inverse,
                       const int64_t* x,       // [L, runs, n]
                       const int32_t* tables,  // [L, 4, n]
                       const int64_t* moduli,  // [L]
                       int64_t* y,             // [L, runs, n]
                       cudaStream_t stream);

// Words of workspace of one call: bounded, apart from the packed keys of relinearise and what a single polynomial
// needs.
int64_t rescale_workspace(const RingParams& p);
int64_t relinearise_workspace(const RelineariseParams& p);

// L >= 2.
cudaError_t launch_rescale(const RingParams& p,
                           const int64_t* x,       // [L, runs, n]
                           const int32_t* tables,  // [L, 4, n]
                           const int64_t* moduli,  // [L]
                           uint32_t* workspace,    // rescale_workspace(p) words
                           int64_t* y,             // [L - 1, runs, n]
                           cudaStream_t stream);

cudaError_t launch_relinearise(const RelineariseParams& p,
                               const int64_t* x,       // [L, positions, 3, n]
                               const int64_t* keys,    // [L, 2, L + 1, n]
                               const int32_t* tables,  // [L + 1, 4, n]
                               const int64_t* moduli,  // [L + 1], the special prime last
                               uint32_t* workspace,    // relinearise_workspace(p) words
                               int64_t* y,             // [L, positions, 2, n]
                               cudaStream_t stream);

// Uniform residues from seeds, as SEAL expands them: see mcfhe.ops.expand_uniform. Any n >= 1.
cudaError_t launch_expand_uniform(const ExpandParams& p,
                                  const uint64_t* seeds,  // [count, 8]
                                  const int64_t* moduli,  // [L]
                                  int64_t* refused,       // [count], workspace
                                  int32_t* y,             // [L, count, n]
                                  cudaStream_t stream);
// Its second launch: fills the entries of y that are -1, `refused` of each seed, with the words behind the seed's rows.
cudaError_t launch_replace_refused(const ExpandParams& p,
                                   const uint64_t* seeds,   // [count, 8]
                                   const int64_t* moduli,   // [L]
                                   const int64_t* refused,  // [count]
                                   int32_t* y,              // [L, count, n]
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
