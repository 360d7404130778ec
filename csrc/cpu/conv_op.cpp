// conv2d and linear on the CPU: check, plan, pack weights, run.
#include <algorithm>
#include <memory>
#include <new>

#include "run.h"

namespace mcfhe::cpu {
namespace {

constexpr std::align_val_t kAlign{64};

struct AlignedDelete {
  void operator()(std::byte* p) const { ::operator delete(p, kAlign); }
};
using Scratch = std::unique_ptr<std::byte, AlignedDelete>;

Scratch allocate(int64_t bytes) {
  return Scratch(static_cast<std::byte*>(::operator new(static_cast<size_t>(std::max<int64_t>(bytes, 64)), kAlign)));
}

// (max |q|, max over outputs of sum |q|). A sum that would overflow is clamped: it is above every limit anyway.
WeightBounds measure(const char* op, const int64_t* weight, int64_t outputs, int64_t taps) {
  constexpr int64_t kLimit = (int64_t{1} << 31) - 1;
  WeightBounds bounds{0, 0};
  for (int64_t o = 0; o < outputs; ++o) {
    uint64_t sum = 0;
    uint64_t largest = 0;
    for (int64_t i = 0; i < taps; ++i) {
      const int64_t q = weight[o * taps + i];
      const uint64_t magnitude = q < 0 ? uint64_t{0} - static_cast<uint64_t>(q) : static_cast<uint64_t>(q);
      largest = std::max(largest, magnitude);
      sum += std::min<uint64_t>(magnitude, uint64_t{1} << 31);
    }
    STD_TORCH_CHECK(largest <= static_cast<uint64_t>(kLimit), "mcfhe::", op, ": weight of output ", o,
                    " has |q| = ", largest, ", above 2^31 - 1; use fewer scale bits");
    bounds.max_abs = std::max(bounds.max_abs, static_cast<int64_t>(largest));
    bounds.max_sum = std::max(bounds.max_sum, static_cast<int64_t>(std::min<uint64_t>(sum, INT64_MAX)));
  }
  return bounds;
}

void run_conv(const char* op, const ConvParams& p, std::optional<PoolWindow> pool, const Tensor& x,
              const Tensor& weight, const std::optional<Tensor>& bias, const std::optional<Tensor>& poly,
              const std::optional<Tensor>& factor, const Tensor& moduli, const std::optional<IntList>& given,
              const Tensor& y) {
  const Tensor b = checked_moduli(op, moduli);
  const Tensor xd = dense(x);
  const Tensor wd = dense(weight);
  const std::optional<Tensor> bias_d = dense(bias);
  const std::optional<Tensor> poly_d = dense(poly);
  const std::optional<Tensor> factor_d = dense(factor);
  check_table(op, "bias", bias_d, b);
  check_table(op, "poly", poly_d, b);
  check_table(op, "pool_factor", factor_d, b);
  const std::optional<WeightBounds> bounds_given = given_weight_bounds(op, given);
  const int64_t* w = wd.const_data_ptr<int64_t>();
  const WeightBounds bounds =
      bounds_given.has_value() ? *bounds_given : measure(op, w, p.out_channels, wd.numel() / p.out_channels);
  if (y.numel() == 0) return;

  const int64_t* moduli_data = b.const_data_ptr<int64_t>();
  const int64_t largest = *std::max_element(moduli_data, moduli_data + p.limbs);
  const KernelTable& table = kernels();
  BadResidue bad;
  ConvJob job{};
  job.plan = plan_conv2d(p, pool, bounds.max_abs, bounds.max_sum, largest, table);
  job.x = xd.const_data_ptr<int64_t>();
  job.weight = w;
  job.bias = data_or_null(bias_d);
  job.poly = data_or_null(poly_d);
  job.factor = data_or_null(factor_d);
  job.moduli = moduli_data;
  job.y = y.mutable_data_ptr<int64_t>();
  job.bad = &bad;
  std::vector<int64_t> offsets(static_cast<size_t>(job.plan.taps));
  fill_offsets(job.plan, offsets.data());
  job.offsets = offsets.data();
  const Scratch packed = allocate(job.plan.weight_bytes);
  table.pack_weight(job, packed.get());
  job.packed_weight = packed.get();

  const int64_t outputs = y.numel() * job.plan.pool.h * job.plan.pool.w;
  const int64_t work = outputs / job.plan.tasks * std::max<int64_t>(job.plan.taps / 16, 1);
  torch::stable::parallel_for(0, job.plan.tasks, grain_for(work), [&](int64_t begin, int64_t end) {
    const Scratch scratch = allocate(job.plan.scratch_bytes);
    for (int64_t task = begin; task < end; ++task) table.conv2d(job, task, scratch.get());
  });
  refuse_bad_residue(op, bad);
}

Tensor conv2d(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> poly,
              const Tensor& moduli, IntList stride, IntList padding, IntList dilation, int64_t groups,
              std::optional<IntList> weight_bounds, std::optional<IntList> pool, std::optional<Tensor> pool_factor) {
  const ConvParams p = conv2d_params("conv2d", x, weight, bias, poly, moduli, stride, padding, dilation, groups);
  const std::optional<PoolWindow> window = conv_pool_window("conv2d", x, p, pool, pool_factor);
  const PoolWindow each = window.value_or(PoolWindow{1, 1});
  const Tensor y = empty_like_shape(x, {p.limbs, p.out_channels, p.out_h / each.h, p.out_w / each.w, p.stream});
  run_conv("conv2d", p, window, x, weight, bias, poly, pool_factor, moduli, weight_bounds, y);
  return y;
}

Tensor linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, std::optional<Tensor> poly,
              const Tensor& moduli, std::optional<IntList> weight_bounds) {
  const ConvParams p = linear_params("linear", x, weight, bias, poly, moduli);
  const Tensor y = empty_like_shape(x, {p.limbs, p.out_channels, p.stream});
  run_conv("linear", p, std::nullopt, x, weight, bias, poly, std::nullopt, moduli, weight_bounds, y);
  return y;
}

}  // namespace
}  // namespace mcfhe::cpu

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CPU, m) {
  m.impl("conv2d", TORCH_BOX(&mcfhe::cpu::conv2d));
  m.impl("linear", TORCH_BOX(&mcfhe::cpu::linear));
}
