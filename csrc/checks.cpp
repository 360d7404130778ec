#include "checks.h"

#include <algorithm>
#include <sstream>

namespace mcfhe {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kMaxModulus = (int64_t{1} << 31) - 1;
constexpr int64_t kMaxWindow = int64_t{1} << 20;  // keeps sums of a window below 2^51

std::string list_string(const IntList& values) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : ", ") << values[i];
  out << "]";
  return out.str();
}

// "conv2d: stride" names the argument in the message.
std::string place(const char* op, const char* name) { return std::string("mcfhe::") + op + ": " + name; }

void check_pair(const char* op, const char* name, const IntList& values, int64_t low, int64_t high) {
  STD_TORCH_CHECK(values.size() == 2, place(op, name), " = ", list_string(values), " must be two integers");
  for (const int64_t v : values) {
    STD_TORCH_CHECK(v >= low && v <= high, place(op, name), " = ", list_string(values), " must lie in ", low, "..",
                    high);
  }
}

// Height and width of a pool.
void check_window(const char* op, const char* name, const IntList& window) {
  check_pair(op, name, window, 1, kMaxModulus);
  STD_TORCH_CHECK(window[0] < kMaxWindow && window[1] < kMaxWindow && window[0] * window[1] < kMaxWindow,
                  place(op, name), " = ", list_string(window), " covers 2^20 entries or more");
}

void check_dim(const char* op, const char* name, const Tensor& t, int64_t dim, const char* layout) {
  STD_TORCH_CHECK(t.dim() == dim, place(op, name), " has shape ", shape_string(t), " but must be ", layout);
}

void check_shape(const char* op, const char* name, const Tensor& t, const IntList& expected) {
  bool same = t.dim() == static_cast<int64_t>(expected.size());
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == expected[static_cast<size_t>(i)];
  STD_TORCH_CHECK(same, place(op, name), " has shape ", shape_string(t), " but must be ", list_string(expected));
}

int64_t window_outputs(const char* op, const char* axis, int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                       int64_t dilation) {
  const int64_t extent = dilation * (kernel - 1) + 1;
  const int64_t room = size + 2 * padding - extent;
  STD_TORCH_CHECK(room >= 0, place(op, axis), ": the window spans ", extent, " but the padded input only ",
                  size + 2 * padding, "; use a smaller kernel or more padding");
  return room / stride + 1;
}

// Bias, polynomial and moduli, the same for conv2d and linear.
void check_epilogue(const char* op, const Tensor& x, const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& poly, const Tensor& moduli, ConvParams& p) {
  check_moduli_shape(op, x, moduli);
  if (bias.has_value()) {
    check_int64(op, "bias", *bias);
    check_same_device(op, "bias", *bias, x);
    check_shape(op, "bias", *bias, {p.limbs, p.out_channels});
  }
  if (poly.has_value()) {
    p.poly_channel_stride = channel_table_stride(op, "poly", *poly, x, p.limbs, p.out_channels, -1);
    p.poly_degree = poly->size(2) - 1;
  }
}

void check_weight(const char* op, const Tensor& x, const Tensor& weight, int64_t dim, const char* layout) {
  check_int64(op, "weight", weight);
  check_same_device(op, "weight", weight, x);
  check_dim(op, "weight", weight, dim, layout);
  STD_TORCH_CHECK(weight.numel() > 0, place(op, "weight"), " has shape ", shape_string(weight), " and is empty");
}

}  // namespace

std::string shape_string(const Tensor& t) {
  IntList sizes;
  for (int64_t i = 0; i < t.dim(); ++i) sizes.push_back(t.size(i));
  return list_string(sizes);
}

void check_int64(const char* op, const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, place(op, name),
                  " must be int64: residues and weights are exact integers; convert with .to(torch.int64)");
}

void check_same_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  STD_TORCH_CHECK(t.is_cuda() == x.is_cuda() && (!t.is_cuda() || t.get_device_index() == x.get_device_index()),
                  place(op, name), " is on another device than x; move it with .to(x.device)");
}

void check_moduli_shape(const char* op, const Tensor& x, const Tensor& moduli) {
  check_int64(op, "moduli", moduli);
  check_same_device(op, "moduli", moduli, x);
  check_shape(op, "moduli", moduli, {x.size(0)});
}

void check_moduli_values(const char* op, const int64_t* moduli, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(moduli[i] >= 2 && moduli[i] <= kMaxModulus, place(op, "moduli"), "[", i, "] = ", moduli[i],
                    " must lie in 2..2^31 - 1");
  }
}

void check_table_values(const char* op, const char* name, const int64_t* table, const int64_t* moduli, int64_t limbs,
                        int64_t width) {
  for (int64_t l = 0; l < limbs; ++l) {
    for (int64_t i = 0; i < width; ++i) {
      const int64_t r = table[l * width + i];
      STD_TORCH_CHECK(r >= 0 && r < moduli[l], place(op, name), " holds ", r, " in limb ", l,
                      ", outside 0 <= r < b = ", moduli[l], "; reduce it modulo b first");
    }
  }
}

std::optional<WeightBounds> given_weight_bounds(const char* op, const std::optional<IntList>& bounds) {
  if (!bounds.has_value()) return std::nullopt;
  STD_TORCH_CHECK(bounds->size() == 2 && (*bounds)[0] >= 0 && (*bounds)[1] >= (*bounds)[0], place(op, "weight_bounds"),
                  " = ", list_string(*bounds), " must be (max |q|, max sum of |q|) with 0 <= max |q| <= max sum");
  STD_TORCH_CHECK((*bounds)[0] <= kMaxModulus, place(op, "weight"), " has |q| = ", (*bounds)[0],
                  ", above 2^31 - 1; use fewer scale bits");
  return WeightBounds{(*bounds)[0], (*bounds)[1]};
}

ConvParams conv2d_params(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         const std::optional<Tensor>& poly, const Tensor& moduli, const IntList& stride,
                         const IntList& padding, const IntList& dilation, int64_t groups) {
  check_int64(op, "x", x);
  check_dim(op, "x", x, 5, "[limbs, channels, height, width, stream]");
  check_weight(op, x, weight, 4, "[out_channels, in_channels / groups, kernel height, kernel width]");
  check_pair(op, "stride", stride, 1, kMaxModulus);
  check_pair(op, "padding", padding, 0, kMaxModulus);
  check_pair(op, "dilation", dilation, 1, kMaxModulus);
  ConvParams p{};
  p.limbs = x.size(0);
  p.in_channels = x.size(1);
  p.height = x.size(2);
  p.width = x.size(3);
  p.stream = x.size(4);
  p.out_channels = weight.size(0);
  p.kernel_h = weight.size(2);
  p.kernel_w = weight.size(3);
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.padding_h = padding[0], p.padding_w = padding[1];
  p.dilation_h = dilation[0], p.dilation_w = dilation[1];
  p.groups = groups;
  STD_TORCH_CHECK(groups >= 1 && p.in_channels % groups == 0 && p.out_channels % groups == 0, place(op, "groups"),
                  " = ", groups, " must divide the ", p.in_channels, " input and ", p.out_channels, " output channels");
  STD_TORCH_CHECK(weight.size(1) * groups == p.in_channels, place(op, "weight"), " has shape ", shape_string(weight),
                  " but x has ", p.in_channels, " channels in ", groups, " group(s)");
  p.out_h = window_outputs(op, "height", p.height, p.kernel_h, p.stride_h, p.padding_h, p.dilation_h);
  p.out_w = window_outputs(op, "width", p.width, p.kernel_w, p.stride_w, p.padding_w, p.dilation_w);
  check_epilogue(op, x, bias, poly, moduli, p);
  return p;
}

PoolWindow pool_window(const char* op, const IntList& pool, int64_t height, int64_t width) {
  check_window(op, "pool", pool);
  window_outputs(op, "pool height", height, pool[0], pool[0], 0, 1);
  window_outputs(op, "pool width", width, pool[1], pool[1], 0, 1);
  return {pool[0], pool[1]};
}

std::optional<PoolWindow> conv_pool_window(const char* op, const Tensor& x, const ConvParams& p,
                                           const std::optional<IntList>& pool, const std::optional<Tensor>& factor) {
  STD_TORCH_CHECK(pool.has_value() || !factor.has_value(), place(op, "pool_factor"),
                  " is given but there is no pool; pass pool = [height, width] or no factor");
  if (!pool.has_value()) return std::nullopt;
  const PoolWindow window = pool_window(op, *pool, p.out_h, p.out_w);
  check_factor(op, "pool_factor", factor, x);
  return window;
}

ConvParams linear_params(const char* op, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                         const std::optional<Tensor>& poly, const Tensor& moduli) {
  check_int64(op, "x", x);
  check_dim(op, "x", x, 3, "[limbs, features, stream]");
  check_weight(op, x, weight, 2, "[out_features, in_features]");
  STD_TORCH_CHECK(weight.size(1) == x.size(1), place(op, "weight"), " has shape ", shape_string(weight), " but x has ",
                  x.size(1), " features");
  ConvParams p{};
  p.limbs = x.size(0);
  p.in_channels = x.size(1);
  p.stream = x.size(2);
  p.out_channels = weight.size(0);
  p.height = p.width = p.kernel_h = p.kernel_w = 1;
  p.stride_h = p.stride_w = p.dilation_h = p.dilation_w = 1;
  p.groups = 1;
  p.out_h = p.out_w = 1;
  check_epilogue(op, x, bias, poly, moduli, p);
  return p;
}

PoolParams pool2d_params(const char* op, const Tensor& x, const std::optional<Tensor>& factor, const Tensor& moduli,
                         const IntList& kernel, const IntList& stride, const IntList& padding) {
  check_int64(op, "x", x);
  check_dim(op, "x", x, 5, "[limbs, channels, height, width, stream]");
  check_window(op, "kernel", kernel);
  check_pair(op, "stride", stride, 1, kMaxModulus);
  check_pair(op, "padding", padding, 0, kMaxModulus);
  for (size_t i = 0; i < 2; ++i) {
    STD_TORCH_CHECK(2 * padding[i] <= kernel[i], place(op, "padding"), " = ", list_string(padding),
                    " must be at most half the kernel ", list_string(kernel));
  }
  PoolParams p{};
  p.limbs = x.size(0);
  p.channels = x.size(1);
  p.height = x.size(2);
  p.width = x.size(3);
  p.stream = x.size(4);
  p.kernel_h = kernel[0], p.kernel_w = kernel[1];
  p.stride_h = stride[0], p.stride_w = stride[1];
  p.padding_h = padding[0], p.padding_w = padding[1];
  p.out_h = window_outputs(op, "height", p.height, p.kernel_h, p.stride_h, p.padding_h, 1);
  p.out_w = window_outputs(op, "width", p.width, p.kernel_w, p.stride_w, p.padding_w, 1);
  check_moduli_shape(op, x, moduli);
  check_factor(op, "factor", factor, x);
  return p;
}

PointwiseParams pointwise_params(const char* op, const Tensor& x, const Tensor& moduli) {
  check_int64(op, "x", x);
  STD_TORCH_CHECK(x.dim() >= 2, place(op, "x"), " has shape ", shape_string(x),
                  " but must be [limbs, channels, ..., stream] or [limbs, stream]");
  check_moduli_shape(op, x, moduli);
  PointwiseParams p{};
  p.limbs = x.size(0);
  p.channels = x.dim() == 2 ? 1 : x.size(1);
  p.inner = 1;
  for (int64_t i = x.dim() == 2 ? 1 : 2; i < x.dim(); ++i) p.inner *= x.size(i);
  return p;
}

int64_t channel_table_stride(const char* op, const char* name, const Tensor& table, const Tensor& x, int64_t limbs,
                             int64_t channels, int64_t width) {
  check_int64(op, name, table);
  check_same_device(op, name, table, x);
  const bool has_width = width != 1 || table.dim() == 3;
  const int64_t dim = has_width ? 3 : 2;
  bool good = table.dim() == dim && table.size(0) == limbs && (table.size(1) == 1 || table.size(1) == channels);
  if (good && has_width) good = table.size(2) >= 2;
  STD_TORCH_CHECK(good, place(op, name), " has shape ", shape_string(table), " but must be [", limbs, ", 1 or ",
                  channels, has_width ? ", degree + 1] with degree >= 1" : "]");
  return table.size(1) == 1 ? 0 : (has_width ? table.size(2) : 1);
}

int64_t constant_streams(const char* op, const std::optional<int64_t>& streams, int64_t stream) {
  const int64_t head = streams.value_or(stream);
  STD_TORCH_CHECK(head >= 0 && head <= stream, place(op, "streams"), " = ", head, " must lie in 0..", stream,
                  ", the size of x's last axis");
  return head;
}

void check_factor(const char* op, const char* name, const std::optional<Tensor>& factor, const Tensor& x) {
  if (!factor.has_value()) return;
  check_int64(op, name, *factor);
  check_same_device(op, name, *factor, x);
  check_shape(op, name, *factor, {x.size(0)});
}

}  // namespace mcfhe
