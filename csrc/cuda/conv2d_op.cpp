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

// The dense inputs of one call, on x's device.
struct Inputs {
  Tensor x, weight, moduli;
  std::optional<Tensor> bias, poly;
  WeightRange range;

  Inputs(const char* op, const DeviceScope& scope, const Tensor& x, const Tensor& weight,
         const std::optional<Tensor>& bias, const std::optional<Tensor>& poly, const Tensor& moduli,
         const std::optional<IntList>& given)
      : x(dense(x)), weight(dense(weight)), moduli(dense(moduli)), bias(dense(bias)), poly(dense(poly)) {
    const std::optional<WeightBounds> bounds = given_weight_bounds(op, given);
    range =
        bounds.has_value() ? WeightRange{bounds->max_abs, bounds->max_sum} : measure(op, this->weight, scope.stream());
  }
};

using Launcher = decltype(&launch_conv2d);

Tensor run(const char* op, Launcher launcher, const ConvParams& p, const IntList& shape, const Inputs& in,
           cudaStream_t stream) {
  const Tensor y = allocate(op, in.x, shape);
  check_launch(op, launcher(p, in.range, ConvOptions{}, in.x.const_data_ptr<int64_t>(),
                            in.weight.const_data_ptr<int64_t>(), data_or_null(in.bias), data_or_null(in.poly),
                            in.moduli.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), stream));
  return y;
}

// In the convolution's launch where launch_conv2d_pool can do that, otherwise in a launch of its own.
Tensor run_pooled(const char* op, const ConvParams& p, PoolWindow pool, const Inputs& in,
                  const std::optional<Tensor>& factor, cudaStream_t stream) {
  const int64_t stored_h = p.out_h / pool.h;
  const int64_t stored_w = p.out_w / pool.w;
  const Tensor y = allocate(op, in.x, {p.limbs, p.out_channels, stored_h, stored_w, p.stream});
  const cudaError_t fused = launch_conv2d_pool(
      p, pool, in.range, ConvOptions{}, in.x.const_data_ptr<int64_t>(), in.weight.const_data_ptr<int64_t>(),
      data_or_null(in.bias), data_or_null(in.poly), data_or_null(factor), in.moduli.const_data_ptr<int64_t>(),
      y.mutable_data_ptr<int64_t>(), stream);
  if (fused != cudaErrorNotSupported) {
    check_launch(op, fused);
    return y;
  }
  const Tensor whole = run(op, &launch_conv2d, p, {p.limbs, p.out_channels, p.out_h, p.out_w, p.stream}, in, stream);
  const PoolParams pool_params{p.limbs, p.out_channels, p.out_h, p.out_w, p.stream, pool.h,  pool.w,
                               pool.h,  pool.w,         0,       0,       stored_h, stored_w};
  check_launch(op, launch_sum_pool2d(pool_params, whole.const_data_ptr<int64_t>(), data_or_null(factor),
                                     in.moduli.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), stream));
  return y;
}

Tensor conv2d(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> poly,
              const Tensor& moduli, IntList stride, IntList padding, IntList dilation, int64_t groups,
              std::optional<IntList> weight_bounds, std::optional<IntList> pool, std::optional<Tensor> pool_factor) {
  const char* const op = "conv2d";
  const ConvParams p = conv2d_params(op, x, weight, bias, poly, moduli, stride, padding, dilation, groups);
  const std::optional<PoolWindow> window = conv_pool_window(op, x, p, pool, pool_factor);
  const DeviceScope scope(x);
  const Inputs in(op, scope, x, weight, bias, poly, moduli, weight_bounds);
  if (window.has_value()) return run_pooled(op, p, *window, in, dense(pool_factor), scope.stream());
  return run(op, &launch_conv2d, p, {p.limbs, p.out_channels, p.out_h, p.out_w, p.stream}, in, scope.stream());
}

Tensor linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> poly,
              const Tensor& moduli, std::optional<IntList> weight_bounds) {
  const char* const op = "linear";
  const ConvParams p = linear_params(op, x, weight, bias, poly, moduli);
  const DeviceScope scope(x);
  const Inputs in(op, scope, x, weight, bias, poly, moduli, weight_bounds);
  return run(op, &launch_linear, p, {p.limbs, p.out_channels, p.stream}, in, scope.stream());
}

}  // namespace
}  // namespace mcfhe::cuda

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CUDA, m) {
  m.impl("conv2d", TORCH_BOX(&mcfhe::cuda::conv2d));
  m.impl("linear", TORCH_BOX(&mcfhe::cuda::linear));
}
