// sum_pool2d on CUDA.
#include "kernels/cuda_launch.h"
#include "op_common.h"

namespace mcfhe::cuda {
namespace {

Tensor sum_pool2d(const Tensor& x, std::optional<Tensor> factor, const Tensor& moduli, IntList kernel, IntList stride,
                  IntList padding) {
  const char* const op = "sum_pool2d";
  const PoolParams p = pool2d_params(op, x, factor, moduli, kernel, stride, padding);
  const DeviceScope scope(x);
  const Tensor xd = dense(x);
  const Tensor md = dense(moduli);
  const std::optional<Tensor> factor_d = dense(factor);
  const Tensor y = allocate(op, x, {p.limbs, p.channels, p.out_h, p.out_w, p.stream});
  check_launch(op, launch_sum_pool2d(p, xd.const_data_ptr<int64_t>(), data_or_null(factor_d),
                                     md.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

}  // namespace
}  // namespace mcfhe::cuda

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CUDA, m) { m.impl("sum_pool2d", TORCH_BOX(&mcfhe::cuda::sum_pool2d)); }
