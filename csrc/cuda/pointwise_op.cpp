// square, poly, align_add, add_const and count_out_of_range on CUDA.
#include "kernels/cuda_launch.h"
#include "op_common.h"

namespace mcfhe::cuda {
namespace {

Tensor square(const Tensor& x, const Tensor& moduli) {
  const char* const op = "square";
  const PointwiseParams p = pointwise_params(op, x, moduli);
  const DeviceScope scope(x);
  const Tensor xd = dense(x);
  const Tensor md = dense(moduli);
  const Tensor y = allocate_like(op, x);
  check_launch(op, launch_square(p, xd.const_data_ptr<int64_t>(), md.const_data_ptr<int64_t>(),
                                 y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor poly(const Tensor& x, const Tensor& coefficients, const Tensor& moduli) {
  const char* const op = "poly";
  const PointwiseParams p = pointwise_params(op, x, moduli);
  const int64_t stride = channel_table_stride(op, "coefficients", coefficients, x, p.limbs, p.channels, -1);
  const DeviceScope scope(x);
  const Tensor xd = dense(x);
  const Tensor cd = dense(coefficients);
  const Tensor md = dense(moduli);
  const Tensor y = allocate_like(op, x);
  check_launch(op, launch_poly(p, cd.size(2) - 1, stride, xd.const_data_ptr<int64_t>(), cd.const_data_ptr<int64_t>(),
                               md.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor align_add(const Tensor& x, const Tensor& y, std::optional<Tensor> x_factor, std::optional<Tensor> y_factor,
                 const Tensor& moduli) {
  const char* const op = "align_add";
  const PointwiseParams p = pointwise_params(op, x, moduli);
  check_int64(op, "y", y);
  check_same_device(op, "y", y, x);
  STD_TORCH_CHECK(shape_string(x) == shape_string(y), "mcfhe::align_add: y has shape ", shape_string(y),
                  " but x has shape ", shape_string(x));
  check_factor(op, "x_factor", x_factor, x);
  check_factor(op, "y_factor", y_factor, x);
  const DeviceScope scope(x);
  const Tensor xd = dense(x);
  const Tensor yd = dense(y);
  const Tensor md = dense(moduli);
  const std::optional<Tensor> fx = dense(x_factor);
  const std::optional<Tensor> fy = dense(y_factor);
  const Tensor z = allocate_like(op, x);
  check_launch(op, launch_align_add(p, xd.const_data_ptr<int64_t>(), yd.const_data_ptr<int64_t>(), data_or_null(fx),
                                    data_or_null(fy), md.const_data_ptr<int64_t>(), z.mutable_data_ptr<int64_t>(),
                                    scope.stream()));
  return z;
}

Tensor add_const(const Tensor& x, const Tensor& constant, const Tensor& moduli, std::optional<int64_t> streams) {
  const char* const op = "add_const";
  const PointwiseParams p = pointwise_params(op, x, moduli);
  const int64_t stream = x.size(x.dim() - 1);
  const int64_t head = constant_streams(op, streams, stream);
  const int64_t stride = channel_table_stride(op, "constant", constant, x, p.limbs, p.channels, 1);
  const DeviceScope scope(x);
  const Tensor xd = dense(x);
  const Tensor cd = dense(constant);
  const Tensor md = dense(moduli);
  const Tensor y = allocate_like(op, x);
  check_launch(op, launch_add_const(p, stride, stream, head, xd.const_data_ptr<int64_t>(), cd.const_data_ptr<int64_t>(),
                                    md.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor count_out_of_range(const Tensor& x, const Tensor& moduli) {
  const char* const op = "count_out_of_range";
  const PointwiseParams p = pointwise_params(op, x, moduli);
  const DeviceScope scope(x);
  const Tensor xd = dense(x);
  const Tensor md = dense(moduli);
  const Tensor count = allocate(op, x, {});
  check_launch(op, launch_count_out_of_range(p, xd.const_data_ptr<int64_t>(), md.const_data_ptr<int64_t>(),
                                             count.mutable_data_ptr<int64_t>(), scope.stream()));
  return count;
}

}  // namespace
}  // namespace mcfhe::cuda

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CUDA, m) {
  m.impl("square", TORCH_BOX(&mcfhe::cuda::square));
  m.impl("poly", TORCH_BOX(&mcfhe::cuda::poly));
  m.impl("align_add", TORCH_BOX(&mcfhe::cuda::align_add));
  m.impl("add_const", TORCH_BOX(&mcfhe::cuda::add_const));
  m.impl("count_out_of_range", TORCH_BOX(&mcfhe::cuda::count_out_of_range));
}
