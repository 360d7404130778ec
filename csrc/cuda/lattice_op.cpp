// ntt, tensor_square, relinearise, rescale and expand_uniform on CUDA. Values of moduli, tables and residues are on the
// device and trusted.
#include "kernels/cuda_launch.h"
#include "lattice_checks.h"
#include "op_common.h"

namespace mcfhe::cuda {
namespace {

// Dense and on a 16-byte boundary, as the kernels read.
Tensor aligned(const Tensor& t) {
  const Tensor d = dense(t);
  const bool good = reinterpret_cast<std::uintptr_t>(d.const_data_ptr()) % 16 == 0;
  return good ? d : torch::stable::clone(d);
}

// Shape of x with another size of its first and last axis.
IntList reshaped(const Tensor& x, int64_t limbs, int64_t stream) {
  IntList shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  shape.front() = limbs;
  shape.back() = stream;
  return shape;
}

// Torch's allocator on the current stream: reused at once by what follows on the stream, and capturable.
Tensor allocate_words(const char* op, const Tensor& x, int64_t words) { return allocate(op, x, {(words + 1) / 2}); }

uint32_t* words_of(const Tensor& workspace) {
  return reinterpret_cast<uint32_t*>(workspace.mutable_data_ptr<int64_t>());
}

Tensor ntt(const Tensor& x, const Tensor& tables, const Tensor& moduli, bool inverse) {
  const char* const op = "ntt";
  const RingParams p = ntt_params(op, x, tables, moduli);
  const DeviceScope scope(x);
  const Tensor xd = aligned(x);
  const Tensor td = aligned(tables);
  const Tensor md = dense(moduli);
  const Tensor y = allocate_like(op, x);
  check_launch(op, launch_ntt(p, inverse, xd.const_data_ptr<int64_t>(), td.const_data_ptr<int32_t>(),
                              md.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor tensor_square(const Tensor& x, std::optional<Tensor> shift, std::optional<Tensor> coefficients,
                     const Tensor& moduli, std::optional<IntList> pool) {
  const char* const op = "tensor_square";
  const TensorSquareParams p = tensor_square_params(op, x, shift, coefficients, moduli, pool);
  const DeviceScope scope(x);
  const Tensor xd = dense(x);
  const Tensor md = dense(moduli);
  const std::optional<Tensor> shift_d = dense(shift);
  const std::optional<Tensor> coefficients_d = dense(coefficients);
  const Tensor y = allocate(op, x, tensor_square_shape(x, p));
  const auto launch = p.pooled() ? launch_tensor_square_pool : launch_tensor_square;
  check_launch(op, launch(p, xd.const_data_ptr<int64_t>(), data_or_null(shift_d), data_or_null(coefficients_d),
                          md.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor relinearise(const Tensor& x, const Tensor& keys, const Tensor& tables, const Tensor& moduli) {
  const char* const op = "relinearise";
  const RelineariseParams p = relinearise_params(op, x, keys, tables, moduli);
  const DeviceScope scope(x);
  const Tensor xd = aligned(x);
  const Tensor kd = aligned(keys);
  const Tensor td = aligned(tables);
  const Tensor md = dense(moduli);
  const Tensor y = allocate(op, x, reshaped(x, p.limbs, 2 * p.n));
  const Tensor workspace = allocate_words(op, x, relinearise_workspace(p));
  check_launch(op, launch_relinearise(p, xd.const_data_ptr<int64_t>(), kd.const_data_ptr<int64_t>(),
                                      td.const_data_ptr<int32_t>(), md.const_data_ptr<int64_t>(), words_of(workspace),
                                      y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor rescale(const Tensor& x, const Tensor& tables, const Tensor& moduli) {
  const char* const op = "rescale";
  const RingParams p = rescale_params(op, x, tables, moduli);
  const DeviceScope scope(x);
  const Tensor xd = aligned(x);
  const Tensor td = aligned(tables);
  const Tensor md = dense(moduli);
  const Tensor y = allocate(op, x, reshaped(x, p.limbs - 1, x.size(x.dim() - 1)));
  const Tensor workspace = allocate_words(op, x, rescale_workspace(p));
  check_launch(
      op, launch_rescale(p, xd.const_data_ptr<int64_t>(), td.const_data_ptr<int32_t>(), md.const_data_ptr<int64_t>(),
                         words_of(workspace), y.mutable_data_ptr<int64_t>(), scope.stream()));
  return y;
}

Tensor expand_uniform(const Tensor& seeds, const Tensor& moduli, int64_t n) {
  const char* const op = "expand_uniform";
  const ExpandParams p = expand_params(op, seeds, moduli, n);
  const DeviceScope scope(seeds);
  const Tensor sd = aligned(seeds);
  const Tensor md = dense(moduli);
  const Tensor y = allocate(op, seeds, {p.limbs, p.count, p.n}, ScalarType::Int);
  const Tensor refused = allocate(op, seeds, {p.count});
  check_launch(op, launch_expand_uniform(p, reinterpret_cast<const uint64_t*>(sd.const_data_ptr<uint8_t>()),
                                         md.const_data_ptr<int64_t>(), refused.mutable_data_ptr<int64_t>(),
                                         y.mutable_data_ptr<int32_t>(), scope.stream()));
  return y;
}

}  // namespace
}  // namespace mcfhe::cuda

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CUDA, m) {
  m.impl("ntt", TORCH_BOX(&mcfhe::cuda::ntt));
  m.impl("tensor_square", TORCH_BOX(&mcfhe::cuda::tensor_square));
  m.impl("relinearise", TORCH_BOX(&mcfhe::cuda::relinearise));
  m.impl("rescale", TORCH_BOX(&mcfhe::cuda::rescale));
  m.impl("expand_uniform", TORCH_BOX(&mcfhe::cuda::expand_uniform));
}
