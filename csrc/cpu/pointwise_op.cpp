// sum_pool2d, square, poly, align_add, add_const and count_out_of_range on the CPU.
#include <atomic>

#include "run.h"

namespace mcfhe::cpu {
namespace {

Tensor same_shape(const Tensor& x) {
  IntList shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  return empty_like_shape(x, shape);
}

// Runs `task(job, i)` for every task, each of about `residues` entries of what a refusal calls `name`.
template <class Job>
void run_tasks(const char* op, const Job& job, void (*task)(const Job&, int64_t), int64_t tasks, int64_t residues,
               const char* name = "x") {
  torch::stable::parallel_for(0, tasks, grain_for(residues), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) task(job, i);
  });
  refuse_bad_residue(op, *job.bad, name);
}

Tensor sum_pool2d(const Tensor& x, std::optional<Tensor> factor, const Tensor& moduli, IntList kernel, IntList stride,
                  IntList padding) {
  const PoolParams p = pool2d_params("sum_pool2d", x, factor, moduli, kernel, stride, padding);
  const Tensor b = checked_moduli("sum_pool2d", moduli);
  const Tensor xd = dense(x);
  const std::optional<Tensor> fd = dense(factor);
  check_table("sum_pool2d", "factor", fd, b);
  const Tensor y = empty_like_shape(x, {p.limbs, p.channels, p.out_h, p.out_w, p.stream});
  if (y.numel() == 0) return y;
  BadResidue bad;
  const PoolJob job{
      p,   xd.const_data_ptr<int64_t>(), data_or_null(fd), b.const_data_ptr<int64_t>(), y.mutable_data_ptr<int64_t>(),
      &bad};
  run_tasks("sum_pool2d", job, kernels().sum_pool2d, p.limbs * p.channels * p.out_h,
            p.out_w * p.stream * p.kernel_h * p.kernel_w);
  return y;
}

// table [L, 1 or C, degree + 1]
Tensor run_poly(const char* op, const Tensor& x, const int64_t* table, int64_t degree, int64_t channel_stride,
                const PointwiseParams& p, const Tensor& moduli) {
  const Tensor xd = dense(x);
  const Tensor y = same_shape(xd);
  if (y.numel() == 0) return y;
  BadResidue bad;
  const PolyJob job{p,
                    xd.const_data_ptr<int64_t>(),
                    table,
                    degree,
                    channel_stride,
                    moduli.const_data_ptr<int64_t>(),
                    y.mutable_data_ptr<int64_t>(),
                    &bad};
  run_tasks(op, job, kernels().poly, pointwise_tasks(p), kPointwiseBlock);
  return y;
}

Tensor square(const Tensor& x, const Tensor& moduli) {
  const PointwiseParams p = pointwise_params("square", x, moduli);
  const Tensor b = checked_moduli("square", moduli);
  IntList table;
  for (int64_t l = 0; l < p.limbs; ++l) table.insert(table.end(), {0, 0, 1});
  return run_poly("square", x, table.data(), 2, 0, p, b);
}

Tensor poly(const Tensor& x, const Tensor& coefficients, const Tensor& moduli) {
  const PointwiseParams p = pointwise_params("poly", x, moduli);
  const Tensor b = checked_moduli("poly", moduli);
  const int64_t channel_stride = channel_table_stride("poly", "coefficients", coefficients, x, p.limbs, p.channels, -1);
  const Tensor table = dense(coefficients);
  check_table("poly", "coefficients", table, b);
  return run_poly("poly", x, table.const_data_ptr<int64_t>(), table.size(2) - 1, channel_stride, p, b);
}

Tensor add_const(const Tensor& x, const Tensor& constant, const Tensor& moduli, std::optional<int64_t> streams) {
  const char* const op = "add_const";
  const PointwiseParams p = pointwise_params(op, x, moduli);
  const int64_t stream = x.size(x.dim() - 1);
  const int64_t head = constant_streams(op, streams, stream);
  const Tensor b = checked_moduli(op, moduli);
  const int64_t channel_stride = channel_table_stride(op, "constant", constant, x, p.limbs, p.channels, 1);
  const Tensor c = dense(constant);
  check_table(op, "constant", c, b);
  const Tensor xd = dense(x);
  const Tensor y = same_shape(xd);
  if (y.numel() == 0) return y;
  BadResidue bad;
  const AddConstJob job{p,
                        xd.const_data_ptr<int64_t>(),
                        c.const_data_ptr<int64_t>(),
                        channel_stride,
                        stream,
                        head,
                        b.const_data_ptr<int64_t>(),
                        y.mutable_data_ptr<int64_t>(),
                        &bad};
  run_tasks(op, job, kernels().add_const, y.numel() / stream, stream);
  return y;
}

Tensor align_add(const Tensor& x, const Tensor& y, std::optional<Tensor> x_factor, std::optional<Tensor> y_factor,
                 const Tensor& moduli) {
  const char* op = "align_add";
  const PointwiseParams p = pointwise_params(op, x, moduli);
  check_int64(op, "y", y);
  check_same_device(op, "y", y, x);
  STD_TORCH_CHECK(shape_string(x) == shape_string(y), "mcfhe::align_add: y has shape ", shape_string(y),
                  " but x has shape ", shape_string(x));
  check_factor(op, "x_factor", x_factor, x);
  check_factor(op, "y_factor", y_factor, x);
  const Tensor b = checked_moduli(op, moduli);
  const Tensor xd = dense(x);
  const Tensor yd = dense(y);
  const std::optional<Tensor> fx = dense(x_factor);
  const std::optional<Tensor> fy = dense(y_factor);
  check_table(op, "x_factor", fx, b);
  check_table(op, "y_factor", fy, b);
  const Tensor z = same_shape(xd);
  if (z.numel() == 0) return z;
  BadResidue bad;
  const AlignAddJob job{p,
                        xd.const_data_ptr<int64_t>(),
                        yd.const_data_ptr<int64_t>(),
                        data_or_null(fx),
                        data_or_null(fy),
                        b.const_data_ptr<int64_t>(),
                        z.mutable_data_ptr<int64_t>(),
                        &bad};
  run_tasks(op, job, kernels().align_add, pointwise_tasks(p), kPointwiseBlock, "x or y");
  return z;
}

Tensor count_out_of_range(const Tensor& x, const Tensor& moduli) {
  const PointwiseParams p = pointwise_params("count_out_of_range", x, moduli);
  const Tensor b = checked_moduli("count_out_of_range", moduli);
  const Tensor xd = dense(x);
  const int64_t* data = xd.const_data_ptr<int64_t>();
  const int64_t* moduli_data = b.const_data_ptr<int64_t>();
  const int64_t per_limb = p.channels * p.inner;
  std::atomic<int64_t> total{0};
  const KernelTable& table = kernels();
  torch::stable::parallel_for(0, p.limbs * per_limb, kGrainResidues * 4, [&](int64_t begin, int64_t end) {
    int64_t found = 0;
    while (begin < end) {
      const int64_t limb = begin / per_limb;
      const int64_t stop = std::min(end, (limb + 1) * per_limb);
      found += table.count_out_of_range(data, begin, stop, moduli_data[limb]);
      begin = stop;
    }
    total += found;
  });
  const Tensor out = empty_like_shape(x, {});
  *out.mutable_data_ptr<int64_t>() = total.load();
  return out;
}

// Name of the instruction set the CPU kernels run on here.
std::string cpu_isa() { return isa_name(); }

}  // namespace
}  // namespace mcfhe::cpu

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&mcfhe::cpu::cpu_isa)); }

STABLE_TORCH_LIBRARY_IMPL(mcfhe, CPU, m) {
  m.impl("sum_pool2d", TORCH_BOX(&mcfhe::cpu::sum_pool2d));
  m.impl("square", TORCH_BOX(&mcfhe::cpu::square));
  m.impl("poly", TORCH_BOX(&mcfhe::cpu::poly));
  m.impl("align_add", TORCH_BOX(&mcfhe::cpu::align_add));
  m.impl("add_const", TORCH_BOX(&mcfhe::cpu::add_const));
  m.impl("count_out_of_range", TORCH_BOX(&mcfhe::cpu::count_out_of_range));
}
