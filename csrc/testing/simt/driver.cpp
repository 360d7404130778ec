// Runs launchers on request: reads from standard input, answers on standard output, until the input ends.
//
// Request: one line `op key=value ... buffers=name:kind:size[:count],...`, then the buffers' contents in that order as
// little-endian int64. kind dense: `size` entries. kind sparse: a buffer of `size` zeros, of which `count` (index,
// value) pairs are given; its output is read at `count` indices given as buffer `at`. Answer: `ok entries=n ...` and n
// int64, or `error message`. harness.py is the other side.
#include <cstdio>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda_launch.h"
#include "planted/planted.h"
#include "runtime.h"
#include "testing/baseline/conv2d_naive.h"

namespace {

using Values = std::vector<int64_t>;
using namespace mcfhe;

// One request: its numbers, its buffers in device memory, its answer.
class Call {
 public:
  explicit Call(const std::string& line) {
    std::istringstream words(line);
    words >> op_;
    for (std::string word; words >> word;) {
      const size_t equals = word.find('=');
      if (equals == std::string::npos) throw simt::Error("malformed word " + word);
      text_[word.substr(0, equals)] = word.substr(equals + 1);
    }
    std::istringstream list(text("buffers", ""));
    for (std::string item; std::getline(list, item, ',');) read_buffer(item);
  }

  const std::string& op() const { return op_; }

  std::string text(const std::string& key, const std::string& fallback) const {
    const auto at = text_.find(key);
    return at == text_.end() ? fallback : at->second;
  }
  int64_t number(const std::string& key, int64_t fallback) const {
    const auto at = text_.find(key);
    return at == text_.end() ? fallback : std::stoll(at->second);
  }
  int64_t number(const std::string& key) const {
    if (!text_.contains(key)) throw simt::Error("missing " + key);
    return number(key, 0);
  }

  // Null when the request has no such buffer.
  const int64_t* input(const std::string& name) const {
    const auto at = device_.find(name);
    return at == device_.end() ? nullptr : at->second;
  }

  int64_t* output(int64_t entries) {
    sparse_output_ = host_.contains("at");
    output_entries_ = entries;
    output_ = allocate(entries, sparse_output_, number("y_offset", 0));
    return output_;
  }

  Values answer() const {
    if (!sparse_output_) return Values(output_, output_ + output_entries_);
    Values values;
    for (const int64_t index : host_.at("at")) values.push_back(output_[index]);
    return values;
  }

 private:
  static int64_t* allocate(int64_t entries, bool sparse, int64_t offset) {
    const size_t bytes = static_cast<size_t>(entries + offset) * sizeof(int64_t);
    return static_cast<int64_t*>(simt::device_alloc(bytes, sparse)) + offset;
  }

  static Values read_values(int64_t count) {
    Values values(static_cast<size_t>(count));
    std::cin.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * 8));
    if (!std::cin) throw simt::Error("the request ends early");
    return values;
  }

  // name:dense:size, name:sparse:size:count, or name:host:size for numbers that the driver itself reads
  void read_buffer(const std::string& item) {
    std::istringstream parts(item);
    std::string name, kind, size, count;
    std::getline(parts, name, ':');
    std::getline(parts, kind, ':');
    std::getline(parts, size, ':');
    std::getline(parts, count, ':');
    const int64_t entries = std::stoll(size);
    if (kind == "host") {
      host_[name] = read_values(entries);
    } else if (kind == "sparse") {
      const Values pairs = read_values(2 * std::stoll(count));
      int64_t* const memory = allocate(entries, true, 0);
      for (size_t i = 0; i < pairs.size(); i += 2) memory[pairs[i]] = pairs[i + 1];
      device_[name] = memory;
    } else {
      const Values values = read_values(entries);
      int64_t* const memory = allocate(entries, false, number(name + "_offset", 0));
      if (entries > 0) std::memcpy(memory, values.data(), values.size() * sizeof(int64_t));
      device_[name] = memory;
    }
  }

  std::string op_;
  std::map<std::string, std::string> text_;
  std::map<std::string, int64_t*> device_;
  std::map<std::string, Values> host_;
  int64_t* output_ = nullptr;
  int64_t output_entries_ = 0;
  bool sparse_output_ = false;
};

ConvParams conv_params(const Call& c) {
  ConvParams p{};
  p.limbs = c.number("limbs");
  p.in_channels = c.number("in_channels");
  p.height = c.number("height", 1);
  p.width = c.number("width", 1);
  p.stream = c.number("stream");
  p.out_channels = c.number("out_channels");
  p.kernel_h = c.number("kernel_h", 1);
  p.kernel_w = c.number("kernel_w", 1);
  p.stride_h = c.number("stride_h", 1);
  p.stride_w = c.number("stride_w", 1);
  p.padding_h = c.number("padding_h", 0);
  p.padding_w = c.number("padding_w", 0);
  p.dilation_h = c.number("dilation_h", 1);
  p.dilation_w = c.number("dilation_w", 1);
  p.groups = c.number("groups", 1);
  p.out_h = c.number("out_h", 1);
  p.out_w = c.number("out_w", 1);
  p.poly_degree = c.number("poly_degree", 0);
  p.poly_channel_stride = c.number("poly_channel_stride", 0);
  return p;
}

PoolParams pool_params(const Call& c) {
  return {c.number("limbs"),    c.number("channels"),  c.number("height"),    c.number("width"),
          c.number("stream"),   c.number("kernel_h"),  c.number("kernel_w"),  c.number("stride_h"),
          c.number("stride_w"), c.number("padding_h"), c.number("padding_w"), c.number("out_h"),
          c.number("out_w")};
}

PointwiseParams pointwise_params(const Call& c) { return {c.number("limbs"), c.number("channels"), c.number("inner")}; }
RingParams ring_params(const Call& c) { return {c.number("limbs"), c.number("runs"), c.number("n")}; }

int64_t entries(const PointwiseParams& p) { return p.limbs * p.channels * p.inner; }
int64_t entries(const ConvParams& p) { return p.limbs * p.out_channels * p.out_h * p.out_w * p.stream; }
int64_t entries(const PoolParams& p) { return p.limbs * p.channels * p.out_h * p.out_w * p.stream; }

using Launcher = cudaError_t (*)(const ConvParams&, cuda::WeightRange, cuda::ConvOptions, const int64_t*,
                                 const int64_t*, const int64_t*, const int64_t*, const int64_t*, int64_t*,
                                 cudaStream_t);

cudaError_t run_conv(Call& c, Launcher launcher) {
  const ConvParams p = conv_params(c);
  const cuda::WeightRange range{c.number("max_abs"), c.number("max_sum")};
  const cuda::ConvOptions options{static_cast<cuda::Arithmetic>(c.number("arithmetic", 0)),
                                  static_cast<cuda::ConvTile>(c.number("tile", 0))};
  return launcher(p, range, options, c.input("x"), c.input("weight"), c.input("bias"), c.input("poly"),
                  c.input("moduli"), c.output(entries(p)), nullptr);
}

cudaError_t run_conv_pool(Call& c) {
  const ConvParams p = conv_params(c);
  const PoolWindow pool{c.number("pool_h"), c.number("pool_w")};
  const cuda::WeightRange range{c.number("max_abs"), c.number("max_sum")};
  const cuda::ConvOptions options{static_cast<cuda::Arithmetic>(c.number("arithmetic", 0)),
                                  static_cast<cuda::ConvTile>(c.number("tile", 0))};
  const int64_t stored = p.limbs * p.out_channels * (p.out_h / pool.h) * (p.out_w / pool.w) * p.stream;
  return cuda::launch_conv2d_pool(p, pool, range, options, c.input("x"), c.input("weight"), c.input("bias"),
                                  c.input("poly"), c.input("factor"), c.input("moduli"), c.output(stored), nullptr);
}

cudaError_t run_naive(Call& c) {
  const ConvParams p = conv_params(c);
  return baseline::launch_conv2d_naive(p, c.input("x"), c.input("weight"), c.input("moduli"), c.output(entries(p)),
                                       nullptr);
}

cudaError_t run_pool(Call& c) {
  const PoolParams p = pool_params(c);
  return cuda::launch_sum_pool2d(p, c.input("x"), c.input("factor"), c.input("moduli"), c.output(entries(p)), nullptr);
}

cudaError_t run_square(Call& c) {
  const PointwiseParams p = pointwise_params(c);
  return cuda::launch_square(p, c.input("x"), c.input("moduli"), c.output(entries(p)), nullptr);
}

cudaError_t run_poly(Call& c) {
  const PointwiseParams p = pointwise_params(c);
  return cuda::launch_poly(p, c.number("degree"), c.number("channel_stride"), c.input("x"), c.input("coefficients"),
                           c.input("moduli"), c.output(entries(p)), nullptr);
}

cudaError_t run_align_add(Call& c) {
  const PointwiseParams p = pointwise_params(c);
  return cuda::launch_align_add(p, c.input("x"), c.input("other"), c.input("x_factor"), c.input("y_factor"),
                                c.input("moduli"), c.output(entries(p)), nullptr);
}

cudaError_t run_add_const(Call& c) {
  const PointwiseParams p = pointwise_params(c);
  const int64_t stream = c.number("stream", p.inner);
  return cuda::launch_add_const(p, c.number("channel_stride"), stream, c.number("head", stream), c.input("x"),
                                c.input("constant"), c.input("moduli"), c.output(entries(p)), nullptr);
}

// Two table entries a number of the request.
const int32_t* tables(const Call& c) { return reinterpret_cast<const int32_t*>(c.input("tables")); }

uint32_t* workspace(int64_t words) {
  return static_cast<uint32_t*>(simt::device_alloc(static_cast<size_t>(words) * sizeof(uint32_t)));
}

cudaError_t run_ntt(Call& c) {
  const RingParams p = ring_params(c);
  return cuda::launch_ntt(p, c.number("inverse") != 0, c.input("x"), tables(c), c.input("moduli"),
                          c.output(p.limbs * p.runs * p.n), nullptr);
}

cudaError_t run_rescale(Call& c) {
  const RingParams p = ring_params(c);
  uint32_t* const words = workspace(cuda::rescale_workspace(p));
  return cuda::launch_rescale(p, c.input("x"), tables(c), c.input("moduli"), words,
                              c.output((p.limbs - 1) * p.runs * p.n), nullptr);
}

cudaError_t run_relinearise(Call& c) {
  const RelineariseParams p{c.number("limbs"), c.number("positions"), c.number("n")};
  uint32_t* const words = workspace(cuda::relinearise_workspace(p));
  return cuda::launch_relinearise(p, c.input("x"), c.input("keys"), tables(c), c.input("moduli"), words,
                                  c.output(2 * p.limbs * p.positions * p.n), nullptr);
}

ExpandParams expand_params(const Call& c) { return {c.number("limbs"), c.number("count"), c.number("n")}; }
int64_t entries(const ExpandParams& p) { return p.limbs * p.count * p.n; }
const uint64_t* seeds(const Call& c) { return reinterpret_cast<const uint64_t*>(c.input("seeds")); }

// Two residues an entry of the answer; y_words: 1 for residues that begin at an odd word.
int32_t* residue_words(Call& c, int64_t count) {
  const int64_t offset = c.number("y_words", 0);
  return reinterpret_cast<int32_t*>(c.output((count + offset + 1) / 2)) + offset;
}

cudaError_t run_expand_uniform(Call& c) {
  const ExpandParams p = expand_params(c);
  int64_t* const refused = static_cast<int64_t*>(simt::device_alloc(static_cast<size_t>(p.count) * sizeof(int64_t)));
  return cuda::launch_expand_uniform(p, seeds(c), c.input("moduli"), refused, residue_words(c, entries(p)), nullptr);
}

// `y` holds what the first launch left, -1 where it refused.
cudaError_t run_replace_refused(Call& c) {
  const ExpandParams p = expand_params(c);
  int32_t* const y = residue_words(c, entries(p));
  if (entries(p) > 0) std::memcpy(y, c.input("y"), static_cast<size_t>(entries(p)) * sizeof(int32_t));
  return cuda::launch_replace_refused(p, seeds(c), c.input("moduli"), c.input("refused"), y, nullptr);
}

TensorSquareParams square_params(Call& c) {
  return {c.number("limbs"), c.number("channels"),     c.number("positions"),
          c.number("n"),     c.number("shift_stride"), c.number("coefficients_stride")};
}

cudaError_t run_tensor_square_pool(Call& c) {
  TensorSquareParams p = square_params(c);
  p.width = c.number("width");
  p.pool = {c.number("pool_h"), c.number("pool_w")};
  const int64_t windows = p.positions / p.width / p.pool.h * (p.width / p.pool.w);
  return cuda::launch_tensor_square_pool(p, c.input("x"), c.input("shift"), c.input("coefficients"), c.input("moduli"),
                                         c.output(3 * p.limbs * p.channels * windows * p.n), nullptr);
}

cudaError_t run_tensor_square(Call& c) {
  const TensorSquareParams p = square_params(c);
  return cuda::launch_tensor_square(p, c.input("x"), c.input("shift"), c.input("coefficients"), c.input("moduli"),
                                    c.output(3 * p.limbs * p.channels * p.positions * p.n), nullptr);
}

cudaError_t run_count(Call& c) {
  return cuda::launch_count_out_of_range(pointwise_params(c), c.input("x"), c.input("moduli"), c.output(1), nullptr);
}

cudaError_t run_weight_range(Call& c) {
  return cuda::launch_weight_range(c.number("rows"), c.number("columns"), c.input("weight"), c.output(2), nullptr);
}

cudaError_t run_planted(Call& c) {
  const std::string name = c.text("name", "");
  for (const planted::Bug& bug : planted::all()) {
    if (bug.name == name) return bug.launch(c.number("bug") != 0, c.input("x"), c.output(c.number("size")));
  }
  throw simt::Error("no planted kernel " + name);
}

const std::map<std::string, std::function<cudaError_t(Call&)>> kOps = {
    {"conv2d", [](Call& c) { return run_conv(c, &cuda::launch_conv2d); }},
    {"linear", [](Call& c) { return run_conv(c, &cuda::launch_linear); }},
    {"conv2d_pool", run_conv_pool},
    {"conv2d_naive", run_naive},
    {"sum_pool2d", run_pool},
    {"square", run_square},
    {"poly", run_poly},
    {"align_add", run_align_add},
    {"add_const", run_add_const},
    {"ntt", run_ntt},
    {"rescale", run_rescale},
    {"relinearise", run_relinearise},
    {"tensor_square", run_tensor_square},
    {"tensor_square_pool", run_tensor_square_pool},
    {"expand_uniform", run_expand_uniform},
    {"replace_refused", run_replace_refused},
    {"count_out_of_range", run_count},
    {"weight_range", run_weight_range},
    {"planted", run_planted},
};

// "conv2d_tiled_kernel<Path, kOut, kPos>" -> "conv2d_tiled_kernel"
std::string kernel_list() {
  std::string list;
  for (const std::string& name : simt::kernels_run()) {
    list += (list.empty() ? "" : ",") + name.substr(0, name.find('<'));
  }
  return list;
}

void answer(const std::string& line) {
  try {
    Call call(line);
    simt::options() = {static_cast<uint64_t>(call.number("schedule", 0)),
                       static_cast<uint64_t>(call.number("edge_blocks", 0)),
                       static_cast<int>(call.number("processors", 132)),
                       static_cast<int>(call.number("double_ratio", 2)), static_cast<int>(call.number("major", 9))};
    const auto op = kOps.find(call.op());
    if (op == kOps.end()) throw simt::Error("unknown op " + call.op());
    const cudaError_t error = op->second(call);
    if (error != cudaSuccess) throw simt::Error("launch refused with CUDA error " + std::to_string(error));
    const Values values = call.answer();
    std::cout << "ok entries=" << values.size() << " kernels=" << kernel_list() << "\n";
    std::cout.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * 8));
  } catch (const std::exception& error) {
    std::cout << "error " << error.what() << "\n";
  }
  std::cout.flush();
  simt::device_free_all();
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) answer(line);
  return 0;
}
