// Checks shared by every op, CPU and CUDA. Each message names the argument, what it is, and what it must be.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/params.h"

namespace mcfhe {

using torch::stable::Tensor;
using IntList = std::vector<int64_t>;

// "[2, 3, 4]"
std::string shape_string(const Tensor& t);

// int64 and dense; the message starts with the op and argument names.
void check_int64(const char* op, const char* name, const Tensor& t);

// Same device as x.
void check_same_device(const char* op, const char* name, const Tensor& t, const Tensor& x);

// moduli is int64 [L] with L = x.size(0), on x's device.
void check_moduli_shape(const char* op, const Tensor& x, const Tensor& moduli);

// 2 <= b < 2^31 for every entry. Host memory only.
void check_moduli_values(const char* op, const int64_t* moduli, int64_t count);

// 0 <= r < b_l for each row of `width` entries of a small per-limb table. Host memory only.
void check_table_values(const char* op, const char* name, const int64_t* table, const int64_t* moduli, int64_t limbs,
                        int64_t width);

// (max |q|, max over outputs of sum |q|) where the caller gave them, checked for sense.
struct WeightBounds {
  int64_t max_abs;
  int64_t max_sum;
};
std::optional<WeightBounds> given_weight_bounds(const char* op, const std::optional<IntList>& bounds);

// Shape checks and derived sizes of one call; throws with a message that names the argument.
ConvParams conv2d_params(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         const std::optional<Tensor>& poly, const Tensor& moduli, const IntList& stride,
                         const IntList& padding, const IntList& dilation, int64_t groups);
// The window of a pool [height, width] side by side, of which at least one fits.
PoolWindow pool_window(const char* op, const IntList& pool, int64_t height, int64_t width);
// The window of the pool behind a convolution, of which at least one fits the output; none without a pool.
std::optional<PoolWindow> conv_pool_window(const char* op, const Tensor& x, const ConvParams& p,
                                           const std::optional<IntList>& pool, const std::optional<Tensor>& factor);
ConvParams linear_params(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         const std::optional<Tensor>& poly, const Tensor& moduli);
PoolParams pool2d_params(const char* op, const Tensor& x, const std::optional<Tensor>& factor, const Tensor& moduli,
                         const IntList& kernel, const IntList& stride, const IntList& padding);
// x is [L, C, ..., S] with 2 dimensions or more ([L, S] has C = 1); table is [L, 1 or C] (+ [width]) or [L].
PointwiseParams pointwise_params(const char* op, const Tensor& x, const Tensor& moduli);
// Columns of a per-channel table [L, 1 or C, width]: returns the row stride between channels, 0 when shared.
int64_t channel_table_stride(const char* op, const char* name, const Tensor& table, const Tensor& x, int64_t limbs,
                             int64_t channels, int64_t width);
// Leading entries of the innermost axis that add_const adds to: all `stream` of them unless `streams` says fewer.
int64_t constant_streams(const char* op, const std::optional<int64_t>& streams, int64_t stream);
void check_factor(const char* op, const char* name, const std::optional<Tensor>& factor, const Tensor& x);

}  // namespace mcfhe
