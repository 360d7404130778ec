// The scalar reductions at the edges of their ranges and at random, against 128-bit arithmetic.
#include <cstdio>
#include <random>
#include <vector>

#include "kernels/modmath.h"

namespace {

int failures = 0;

void expect_equal(const char* what, uint64_t got, uint64_t want, int64_t b) {
  if (got == want) return;
  std::printf("%s: got %llu, want %llu, b = %lld\n", what, static_cast<unsigned long long>(got),
              static_cast<unsigned long long>(want), static_cast<long long>(b));
  ++failures;
}

uint64_t floor_mod(int64_t x, int64_t b) {
  const __int128 r = static_cast<__int128>(x) % b;
  return static_cast<uint64_t>(r < 0 ? r + b : r);
}

}  // namespace

int main() {
  std::mt19937_64 random(7);
  std::vector<int64_t> moduli = {2, 3, 4, 5, 1 << 15, (1 << 30) - 35, 1 << 30, 2147483646, 2147483647};
  for (int i = 0; i < 200; ++i) moduli.push_back(2 + static_cast<int64_t>(random() % 2147483646));
  for (const int64_t b : moduli) {
    const mcfhe::Modulus m = mcfhe::make_modulus(b);
    const uint64_t ub = static_cast<uint64_t>(b);
    std::vector<uint64_t> values = {0,
                                    1,
                                    ub - 1,
                                    ub,
                                    ub + 1,
                                    2 * ub - 1,
                                    ~uint64_t{0},
                                    ~uint64_t{0} / ub * ub,
                                    ~uint64_t{0} / ub * ub - 1,
                                    uint64_t{1} << 63,
                                    (uint64_t{1} << 63) - 1};
    for (int i = 0; i < 2000; ++i) values.push_back(random() >> (random() % 64));
    for (const uint64_t x : values) {
      expect_equal("barrett_u64", mcfhe::barrett_u64(x, m), x % ub, b);
      expect_equal("reduce_i64", mcfhe::reduce_i64(static_cast<int64_t>(x), m), floor_mod(static_cast<int64_t>(x), b),
                   b);
      const uint64_t r = x % ub;
      const uint64_t s = values[x % values.size()] % ub;
      expect_equal("add_mod", mcfhe::add_mod(r, s, m), (r + s) % ub, b);
      expect_equal("mul_mod", mcfhe::mul_mod(r, s, m), r * s % ub, b);
    }
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
