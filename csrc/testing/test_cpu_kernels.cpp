// Every CPU kernel table this processor runs, on shapes around the vector and block widths, against 128-bit loops.
// Built with sanitizers: buffers are exactly as large as the kernels may touch.
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "kernels/modmath.h"

namespace {

using namespace mcfhe;
using namespace mcfhe::cpu;

int failures = 0;
std::mt19937_64 rng(11);

std::vector<int64_t> residues(const std::vector<int64_t>& moduli, int64_t each) {
  std::vector<int64_t> out;
  for (const int64_t b : moduli) {
    for (int64_t i = 0; i < each; ++i) {
      const uint64_t kind = rng() % 8;
      out.push_back(kind == 0 ? 0 : kind == 1 ? b - 1 : static_cast<int64_t>(rng() % static_cast<uint64_t>(b)));
    }
  }
  return out;
}

int64_t floor_mod(__int128 x, int64_t b) {
  const __int128 r = x % b;
  return static_cast<int64_t>(r < 0 ? r + b : r);
}

int64_t horner(__int128 x, const int64_t* c, int64_t degree, int64_t b) {
  __int128 r = 0;
  const __int128 canonical = floor_mod(x, b);
  for (int64_t i = degree; i >= 0; --i) r = (r * canonical + c[i]) % b;
  return static_cast<int64_t>(r);
}

// The convolution with bias and a polynomial, and the pool where one is wanted.
void check(const KernelTable& table, const ConvParams& p, std::optional<PoolWindow> wanted, int64_t limit,
           const std::vector<int64_t>& moduli) {
  const int64_t group_in = p.in_channels / p.groups;
  const int64_t taps = group_in * p.kernel_h * p.kernel_w;
  const std::vector<int64_t> x = residues(moduli, p.in_channels * p.height * p.width * p.stream);
  const std::vector<int64_t> bias = residues(moduli, p.out_channels);
  const std::vector<int64_t> poly = residues(moduli, p.out_channels * 3);
  std::vector<int64_t> weight(static_cast<size_t>(p.out_channels * taps));
  for (int64_t& q : weight) q = static_cast<int64_t>(rng() % static_cast<uint64_t>(2 * limit + 1)) - limit;
  const std::vector<int64_t> factor = residues(moduli, 1);
  const PoolWindow pool = wanted.value_or(PoolWindow{1, 1});
  const int64_t stored_h = p.out_h / pool.h;
  const int64_t stored_w = p.out_w / pool.w;
  std::vector<int64_t> y(static_cast<size_t>(p.limbs * p.out_channels * stored_h * stored_w * p.stream), -1);
  std::vector<int64_t> want(y.size());

  int64_t largest = 0;
  for (const int64_t b : moduli) largest = std::max(largest, b);
  BadResidue bad;
  ConvJob job{};
  job.plan = plan_conv2d(p, wanted, limit, limit * taps, largest, table);
  job.x = x.data();
  job.weight = weight.data();
  job.bias = bias.data();
  job.poly = poly.data();
  job.factor = wanted ? factor.data() : nullptr;
  job.moduli = moduli.data();
  job.y = y.data();
  job.bad = &bad;
  std::vector<int64_t> offsets(static_cast<size_t>(job.plan.taps));
  fill_offsets(job.plan, offsets.data());
  job.offsets = offsets.data();
  const auto packed = std::make_unique<std::byte[]>(static_cast<size_t>(job.plan.weight_bytes));
  table.pack_weight(job, packed.get());
  job.packed_weight = packed.get();
  const auto scratch = std::make_unique<std::byte[]>(static_cast<size_t>(job.plan.scratch_bytes));
  for (int64_t task = 0; task < job.plan.tasks; ++task) table.conv2d(job, task, scratch.get());
  if (bad.seen) ++failures;

  for (int64_t l = 0; l < p.limbs; ++l) {
    for (int64_t o = 0; o < p.out_channels; ++o) {
      for (int64_t oh = 0; oh < p.out_h; ++oh) {
        for (int64_t ow = 0; ow < p.out_w; ++ow) {
          for (int64_t s = 0; s < p.stream; ++s) {
            if (oh / pool.h >= stored_h || ow / pool.w >= stored_w) continue;
            __int128 sum = bias[static_cast<size_t>(l * p.out_channels + o)];
            for (int64_t c = 0; c < group_in; ++c) {
              for (int64_t i = 0; i < p.kernel_h; ++i) {
                for (int64_t j = 0; j < p.kernel_w; ++j) {
                  const int64_t h = oh * p.stride_h + i * p.dilation_h - p.padding_h;
                  const int64_t w = ow * p.stride_w + j * p.dilation_w - p.padding_w;
                  if (h < 0 || h >= p.height || w < 0 || w >= p.width) continue;
                  const int64_t channel = o / (p.out_channels / p.groups) * group_in + c;
                  const int64_t value = x[static_cast<size_t>(
                      (((l * p.in_channels + channel) * p.height + h) * p.width + w) * p.stream + s)];
                  sum += static_cast<__int128>(value) *
                         weight[static_cast<size_t>(((o * group_in + c) * p.kernel_h + i) * p.kernel_w + j)];
                }
              }
            }
            const int64_t b = moduli[static_cast<size_t>(l)];
            const int64_t value = horner(sum, &poly[static_cast<size_t>((l * p.out_channels + o) * 3)], 2, b);
            const int64_t row = ((l * p.out_channels + o) * stored_h + oh / pool.h) * stored_w + ow / pool.w;
            int64_t& total = want[static_cast<size_t>(row * p.stream + s)];
            total = (total + value * (wanted ? factor[static_cast<size_t>(l)] : 1)) % b;
          }
        }
      }
    }
  }
  for (size_t at = 0; at < y.size(); ++at) {
    if (y[at] == want[at] || ++failures >= 10) continue;
    std::printf("%s %s: S %lld, pool %lld x %lld, entry %zu: got %lld, want %lld\n", table.name,
                path_name(job.plan.path), static_cast<long long>(p.stream), static_cast<long long>(pool.h),
                static_cast<long long>(pool.w), at, static_cast<long long>(y[at]), static_cast<long long>(want[at]));
  }
}

void run(const KernelTable& table) {
  const std::vector<int64_t> moduli = {2, 999, 1073741789, 2147450880};
  for (const int64_t limit : {int64_t{90}, int64_t{20000}, int64_t{1} << 24, (int64_t{1} << 31) - 1}) {
    for (const int64_t stream : {1, 4, 7, 16, 63, 64, 128, 129, 150}) {
      for (int variant = 0; variant < 4; ++variant) {
        ConvParams p{};
        p.limbs = static_cast<int64_t>(moduli.size());
        p.groups = variant == 2 ? 2 : 1;
        p.in_channels = variant == 0 ? 1 : variant == 1 ? 3 : 4;
        p.out_channels = variant == 2 ? 6 : 5;
        p.height = 5, p.width = 6, p.stream = stream;
        p.kernel_h = 3, p.kernel_w = variant == 3 ? 2 : 3;
        p.stride_h = 1 + variant % 2, p.stride_w = variant == 3 ? 2 : 1;
        p.padding_h = variant % 2, p.padding_w = 1;
        p.dilation_h = 1, p.dilation_w = variant == 2 ? 2 : 1;
        p.out_h = (p.height + 2 * p.padding_h - p.dilation_h * (p.kernel_h - 1) - 1) / p.stride_h + 1;
        p.out_w = (p.width + 2 * p.padding_w - p.dilation_w * (p.kernel_w - 1) - 1) / p.stride_w + 1;
        p.poly_degree = 2;
        p.poly_channel_stride = 3;
        check(table, p, std::nullopt, limit, moduli);
        check(table, p, PoolWindow{1 + variant / 2, 1 + variant % 2}, limit, moduli);
      }
    }
  }
  std::printf("%s done, %d failures so far\n", table.name, failures);
}

}  // namespace

int main() {
  run(kGenericKernels);
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) run(kAvx2Kernels);
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512dq")) run(kAvx512Kernels);
#endif
  return failures == 0 ? 0 : 1;
}
