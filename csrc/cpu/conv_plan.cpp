// Path, blocking and scratch layout of a convolution. Plain integer arithmetic, no vectors.
#include <algorithm>

#include "kernels.h"

namespace mcfhe::cpu {
namespace {

constexpr int64_t kPackedBudget = 640 * 1024;  // bytes of packed input a task works on; fits a 1 MiB L2
constexpr int64_t kFlatStream = 128;           // up to here a whole row of all streams is one run
constexpr int64_t kBlockStream = 64;
constexpr int64_t kSlack = 64;  // elements a vector load may read past the last column

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Path choose_path(int64_t max_abs, int64_t max_sum, int64_t max_modulus, const KernelTable& table) {
  // |half| <= 2^15 and sum |q| <= 2^16 - 1 keep every 32-bit sum below 2^31. A residue above 2^31 - 2^15 - 1 would have
  // the upper half 2^15, which is no signed 16-bit number.
  const bool int16_fits = max_abs <= 32767 && max_sum <= 65535 && max_modulus <= (int64_t{1} << 31) - (1 << 15);
  if (table.has_int16 && int16_fits) return Path::kInt16;
  // Sums below 2^53 are exact in double; quotients below 2^40 leave the rounded quotient within 1/2 + 2^-12.
  const int64_t max_residue = max_modulus - 1;
  if (table.has_double && max_sum < (int64_t{1} << 40) &&
      max_sum <= (int64_t{1} << 53) / std::max<int64_t>(max_residue, 1))
    return Path::kDouble;
  const int64_t limit = INT64_MAX - max_residue;
  return max_sum <= limit / std::max<int64_t>(max_residue, 1) ? Path::kInt64 : Path::kInt64Mid;
}

int64_t element_bytes(Path path) { return path == Path::kInt16 ? 4 : 8; }

}  // namespace

ConvPlan plan_conv2d(const ConvParams& whole, std::optional<PoolWindow> wanted, int64_t max_abs, int64_t max_sum,
                     int64_t max_modulus, const KernelTable& table) {
  ConvPlan plan{};
  plan.pooled = wanted.has_value();
  plan.pool = wanted.value_or(PoolWindow{1, 1});
  const PoolWindow pool = plan.pool;
  plan.p = whole;
  plan.p.out_h -= whole.out_h % pool.h;
  plan.p.out_w -= whole.out_w % pool.w;
  const ConvParams& p = plan.p;
  plan.path = choose_path(max_abs, max_sum, max_modulus, table);
  const bool halves = plan.path == Path::kInt16;
  const int64_t group_channels = p.in_channels / p.groups;
  const int64_t by_channel = ceil_div(group_channels, 2) * p.kernel_h * p.kernel_w;
  const int64_t by_row = group_channels * ceil_div(p.kernel_h, 2) * p.kernel_w;
  plan.pair_rows = halves && by_row < by_channel;
  plan.taps = !halves ? group_channels * p.kernel_h * p.kernel_w : std::min(by_channel, by_row);
  plan.planes = halves && !plan.pair_rows ? ceil_div(group_channels, 2) : group_channels;
  const int64_t max_residue = std::max<int64_t>(max_modulus - 1, 1);
  plan.taps_per_reduction =
      std::max<int64_t>(1, (INT64_MAX - max_residue) / max_residue / std::max<int64_t>(max_abs, 1));

  plan.phases = p.stride_w;
  plan.positions = ceil_div(p.width + 2 * p.padding_w, p.stride_w);
  plan.flat = p.stream <= kFlatStream;
  plan.block_s = plan.flat ? p.stream : kBlockStream;
  plan.blocks_s = plan.block_s == 0 ? 0 : ceil_div(p.stream, plan.block_s);
  plan.pitch = plan.phases * plan.positions * plan.block_s;

  const int64_t halo = (p.kernel_h - 1) * p.dilation_h + 1;
  const int64_t row_bytes =
      std::max<int64_t>(plan.planes * plan.pitch * element_bytes(plan.path) * (halves ? 2 : 1), 1);
  const int64_t rows_that_fit = std::max<int64_t>(kPackedBudget / row_bytes, halo);
  const int64_t windows = p.out_h / pool.h;
  const int64_t windows_that_fit = ((rows_that_fit - halo) / p.stride_h + 1) / pool.h;
  int64_t band = std::clamp<int64_t>(windows_that_fit, 1, std::max<int64_t>(windows, 1));
  plan.bands = ceil_div(windows, band);
  band = plan.bands == 0 ? 1 : ceil_div(windows, plan.bands);  // bands of nearly equal size
  plan.bands = ceil_div(windows, band);
  plan.band_rows = band * pool.h;
  plan.rows = (plan.band_rows - 1) * p.stride_h + halo;

  plan.tile = table.tile;
  plan.packed_elements = plan.planes * plan.rows * plan.pitch + kSlack;
  // Packed input (two planes for halves), then two 32-bit row buffers for halves, then the pool's sums.
  const int64_t group_out = p.out_channels / p.groups;
  const int64_t run = (plan.flat ? p.out_w : 1) * plan.block_s;
  const int64_t packed_bytes = plan.packed_elements * element_bytes(plan.path) * (halves ? 2 : 1) +
                               (halves ? 2 * (plan.pitch + kSlack) * 4 : 0) + 256;
  plan.sums_offset = ceil_div(packed_bytes, 64) * 64;
  plan.scratch_bytes = plan.sums_offset + (plan.pooled ? group_out * run * 8 : 0);
  plan.weight_bytes = p.groups * ceil_div(group_out, plan.tile) * plan.tile * plan.taps * element_bytes(plan.path);
  plan.tasks = p.limbs * p.groups * plan.blocks_s * plan.bands;
  return plan;
}

void fill_offsets(const ConvPlan& plan, int64_t* offsets) {
  const ConvParams& p = plan.p;
  const int64_t row_step = plan.pair_rows ? 2 : 1;
  int64_t tap = 0;
  for (int64_t plane = 0; plane < plan.planes; ++plane) {
    for (int64_t i = 0; i < p.kernel_h; i += row_step) {
      for (int64_t j = 0; j < p.kernel_w; ++j) {
        const int64_t column = j * p.dilation_w;
        offsets[tap++] = (plane * plan.rows + i * p.dilation_h) * plan.pitch +
                         (column % p.stride_w) * plan.positions * plan.block_s + (column / p.stride_w) * plan.block_s;
      }
    }
  }
}

}  // namespace mcfhe::cpu
