// conv2d and linear on CUDA: check, bound the weights, launch.
#include "kernels/cuda_launch.h"
#include "op_common.h"

namespace mcfhe::cuda {
namespace {

constexpr int64_t kMaxWeight = (int64_t{1} << 31) - 1;

// Measures weight [O, ...] on the device and waits for the result.
WeightRange measure(const char* op, const Tensor& weight, cudaStream_t stream) {
  const int64_t rows = weight.size(0);
  const Tensor range = allocate(op, weight, {2});
  check_launch(op, launch_weight_range(rows, weight.numel() / rows, weight.const_data_ptr<int64_t>(),
                                       range.mutable_data_ptr<int64_t>(), stream));
  const Tensor host = torch::stable::to(range, torch::stable::Device(torch::headeronly::DeviceType::CPU));
  const int64_t* const values = host.const_data_ptr<int64_t>();
  STD_TORCH_CHECK(values[0] <= kMaxWeight, "mcfhe::", op, ": weight has |q| = ", values[0],
                  ", above 2^31 - 1; use fewer scale bits");
  return {values[0], values[1]};
}

using Launcher = decltype(&launch_conv2d);

Tensor run(const char* op, Launcher launcher, const ConvParams& p, const IntList& shape, const Tensor& x,
           const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& poly,
           const Tensor& moduli, const std::optional<IntList>& given) {
  const DeviceScope scope(x);
  const std::optional<WeightBounds> bounds = given_weight_bounds(op, given);
  const Tensor xd = dense(x);
  const Tensor wd = dense(weight);
  const Tensor md = dense(moduli);
  const std::optional<Tensor> bias_d = dense(bias);
  const std::optional<Tensor> poly_d = dense(poly);
  const WeightRange range =
      bounds.has_value() ? WeightRange{bounds->max_abs, bounds->max_sum} : measure(op, wd, scope.stream());
  const Tensor y = allocate(op, x, shape);
  check_launch(op, launcher(p, range, ConvOptions{}, xd.const_data_ptr<int64_t>(), wd.const_data_ptr<int64_t>(),
                            data_or_null(bias_d), data_or_null(poly_d), md.const_data_ptr<int64_t>(),
                            y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor conv2d(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> poly,
              const Tensor& moduli, IntList stride, IntList padding, IntList dilation, int64_t groups,
              std::optional<IntList> weight_bounds) {
  const ConvParams p = conv2d_params("conv2d", x, weight, bias, poly, moduli, stride, padding, dilation, groups);
  return run("conv2d", &launch_conv2d, p, {p.limbs, p.out_channels, p.out_h, p.out_w, p.stream}, x, weight, bias, poly,
             moduli, weight_bounds);
}

Tensor linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> poly,
              const Tensor& moduli, std::optional<IntList> weight_bounds) {
  const ConvParams p = linear_params("linear", x, weight, bias, poly, moduli);
  return run("linear", &launch_linear, p, {p.limbs, p.out_channels, p.stream}, x, weight, bias, poly, moduli,
             weight_bounds);
}

}  // namespace
}  // namespace mcfhe::cuda

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CUDA, m) {
  m.impl("conv2d", TORCH_BOX(&mcfhe::cuda::conv2d));
  m.impl("linear", TORCH_BOX(&mcfhe::cuda::linear));
}
