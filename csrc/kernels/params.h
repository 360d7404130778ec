// Sizes of one kernel call. Torch-free, shared by the CPU kernels, the CUDA kernels and the test harness.
// All counts are 64-bit: a residue tensor may hold more than 2^31 entries.
#pragma once

#include <cstdint>

namespace mcfhe {

// conv2d on x[L, C, H, W, S] -> y[L, O, OH, OW, S]; linear is the case H = W = KH = KW = 1.
struct ConvParams {
  int64_t limbs, in_channels, height, width, stream;
  int64_t out_channels, kernel_h, kernel_w;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  int64_t out_h, out_w;
  int64_t poly_degree;          // 0: no polynomial
  int64_t poly_channel_stride;  // entries between the rows of two output channels; 0: one row for all
};

// The window of a sum pool behind conv2d: without overlap or padding, y[L, O, OH, OW, S] -> [L, O, OH / h, OW / w, S].
// Rows and columns that fill no window are dropped.
struct PoolWindow {
  int64_t h, w;
};

// sum_pool2d on x[L, C, H, W, S] -> y[L, C, OH, OW, S].
struct PoolParams {
  int64_t limbs, channels, height, width, stream;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
  int64_t out_h, out_w;
};

// Pointwise ops see x as [L, C, inner]: one modulus a limb, one table row a channel.
struct PointwiseParams {
  int64_t limbs, channels, inner;
};

// The lattice ops. A component of a ciphertext is a run of n residues: one polynomial modulo one limb.

// ntt and rescale on x[L, runs, n].
struct RingParams {
  int64_t limbs, runs, n;
};

// tensor_square on x[L, C, positions, 2 * n] -> y[L, C, positions, 3 * n]; with a pool, positions are rows of `width`.
struct TensorSquareParams {
  int64_t limbs, channels, positions, n;
  int64_t shift_channel_stride;         // entries between the rows of two channels; 0: one row for all
  int64_t coefficients_channel_stride;  // likewise
  int64_t width = 1;
  PoolWindow pool{1, 1};  // of one place: none

  constexpr bool pooled() const { return pool.h * pool.w > 1; }
};

// relinearise on x[L, positions, 3 * n] -> y[L, positions, 2 * n].
struct RelineariseParams {
  int64_t limbs, positions, n;
};

// expand_uniform: seeds [count, 64 bytes] -> y[L, count, n].
struct ExpandParams {
  int64_t limbs, count, n;
};

}  // namespace mcfhe
