// Which arithmetic a layer's proved bounds and the device allow. Host side.
#pragma once

#include <algorithm>
#include <cstdint>

#include "device_traits.h"
#include "kernels/cuda_launch.h"

namespace mcfhe::cuda {

inline bool is_allowed(Arithmetic arithmetic, WeightRange range) {
  switch (arithmetic) {
    case Arithmetic::kDouble:
      return range.max_sum <= kDoubleMaxSum;
    case Arithmetic::kInt64:
      return range.max_sum <= kInt64MaxSum;
    default:
      return true;
  }
}

inline Arithmetic choose_arithmetic(WeightRange range, const DeviceTraits& device) {
  if (device.full_rate_double && is_allowed(Arithmetic::kDouble, range)) return Arithmetic::kDouble;
  return is_allowed(Arithmetic::kInt64, range) ? Arithmetic::kInt64 : Arithmetic::kInt64MidSum;
}

// The most products that can be added to a canonical residue before the sum may reach 2^63. At least 2, because
// 2 * (2^31 - 1) * (2^31 - 2) + (2^31 - 2) < 2^63.
inline int32_t products_between_reductions(WeightRange range) {
  const int64_t product = std::max<int64_t>(range.max_abs, 1) * kMaxResidue;
  const int64_t count = (INT64_MAX - kMaxResidue) / product;
  return static_cast<int32_t>(std::min<int64_t>(count, INT32_MAX));
}

}  // namespace mcfhe::cuda
