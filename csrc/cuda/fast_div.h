// Division by a number the host knows, as a multiplication on the device.
#pragma once

#include <cstdint>

#include "kernels/modmath.h"

namespace mcfhe::cuda {

// n / d for n * d < 2^31, d >= 1. magic = ceil(2^31 / d) = (2^31 + e) / d with 0 <= e < d, so
// n * magic / 2^31 = n / d + n * e / (d * 2^31) exceeds n / d by less than 1 / d: the floor is the same.
struct SmallDiv {
  int32_t divisor;
  uint32_t magic;

  SmallDiv() = default;
  explicit SmallDiv(int64_t d)
      : divisor(static_cast<int32_t>(d)), magic(static_cast<uint32_t>(((int64_t{1} << 31) + d - 1) / d)) {}

  MCFHE_HD int32_t quotient(int32_t n) const {
    return static_cast<int32_t>((static_cast<uint64_t>(static_cast<uint32_t>(n)) * magic) >> 31);
  }
};

// n / d for 0 <= n < 2^63, d >= 1. The estimate is at most 1 too small: modmath.h, barrett_u64.
struct WideDiv {
  uint64_t divisor;
  uint64_t mu;  // floor((2^64 - 1) / d)

  WideDiv() = default;
  explicit WideDiv(int64_t d) : divisor(static_cast<uint64_t>(d)), mu(~uint64_t{0} / static_cast<uint64_t>(d)) {}

  MCFHE_HD int64_t quotient(int64_t n) const {
    const uint64_t q = mulhi_u64(static_cast<uint64_t>(n), mu);
    const uint64_t rest = static_cast<uint64_t>(n) - q * divisor;
    return static_cast<int64_t>(q + (rest >= divisor ? 1 : 0));
  }
};

}  // namespace mcfhe::cuda
