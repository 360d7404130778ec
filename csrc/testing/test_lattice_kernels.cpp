// The lattice kernels of every instruction set this processor runs, against plain 128-bit arithmetic and against each
// other. Built with sanitizers: buffers are exactly as large as the kernels may touch.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "cpu/kernels.h"
#include "kernels/modmath.h"

namespace {

using namespace mcfhe;
using namespace mcfhe::cpu;
using Residues = std::vector<int64_t>;

int failures = 0;
std::mt19937_64 rng(5);

void expect(bool good, const char* isa, const char* what, int64_t n) {
  if (!good && ++failures < 20) std::printf("%s: %s is wrong for n = %lld\n", isa, what, static_cast<long long>(n));
}

uint64_t power(uint64_t base, uint64_t exponent, uint64_t q) {
  uint64_t r = 1;
  for (; exponent != 0; exponent >>= 1, base = base * base % q) r = exponent & 1 ? r * base % q : r;
  return r;
}

bool is_prime(int64_t q) {
  for (int64_t d = 3; d * d <= q; d += 2) {
    if (q % d == 0) return false;
  }
  return q % 2 == 1;
}

// The largest primes of these widths that are 1 modulo 2n, all different.
Residues primes(int64_t n, const std::vector<int>& widths) {
  Residues out;
  for (const int bits : widths) {
    for (int64_t q = ((int64_t{1} << bits) - 1) / (2 * n) * (2 * n) + 1;; q -= 2 * n) {
      if (q >= int64_t{1} << bits || !is_prime(q)) continue;
      bool taken = false;
      for (const int64_t other : out) taken = taken || other == q;
      if (taken) continue;
      out.push_back(q);
      break;
    }
  }
  return out;
}

uint64_t root_of(int64_t q, int64_t n) {
  for (uint64_t g = 2;; ++g) {
    const uint64_t psi = power(g, static_cast<uint64_t>((q - 1) / (2 * n)), static_cast<uint64_t>(q));
    if (power(psi, static_cast<uint64_t>(n), static_cast<uint64_t>(q)) == static_cast<uint64_t>(q - 1)) return psi;
  }
}

int64_t bit_reversed(int64_t i, int64_t n) {
  int64_t r = 0;
  for (int64_t m = 1; m < n; m *= 2, i /= 2) r = 2 * r + i % 2;
  return r;
}

std::vector<uint32_t> tables(const Residues& moduli, int64_t n) {
  std::vector<uint32_t> out;
  for (const int64_t modulus : moduli) {
    const uint64_t q = static_cast<uint64_t>(modulus), psi = root_of(modulus, n);
    for (const uint64_t root : {psi, power(psi, q - 2, q)}) {
      std::vector<uint32_t> powers(static_cast<size_t>(n)), rows;
      uint64_t value = 1;
      for (int64_t e = 0; e < n; ++e, value = value * root % q) {
        powers[static_cast<size_t>(bit_reversed(e, n))] = static_cast<uint32_t>(value);
      }
      if (root != psi) powers[0] = static_cast<uint32_t>(power(static_cast<uint64_t>(n), q - 2, q));
      out.insert(out.end(), powers.begin(), powers.end());
      for (const uint32_t w : powers) out.push_back(shoup_quotient(w, q));
    }
  }
  return out;
}

Residues residues(const Residues& moduli, int64_t each) {
  Residues out;
  for (const int64_t q : moduli) {
    const uint64_t extreme = rng() % 4;  // a whole limb of the largest residue now and then
    for (int64_t i = 0; i < each; ++i) {
      out.push_back(extreme == 0 ? q - 1 : static_cast<int64_t>(rng() % static_cast<uint64_t>(q)));
    }
  }
  return out;
}

struct FreeWords {
  void operator()(uint32_t* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
std::unique_ptr<uint32_t[], FreeWords> words(int64_t count) {
  return std::unique_ptr<uint32_t[], FreeWords>(new (std::align_val_t{64}) uint32_t[static_cast<size_t>(count)]);
}

// One limb at a few points by definition, there and back.
void check_ntt(const KernelTable& table, int64_t n, const Residues& moduli, const std::vector<uint32_t>& tab) {
  const int64_t limbs = static_cast<int64_t>(moduli.size());
  const Residues x = residues(moduli, 2 * n);
  Residues y(x.size(), -1), z(x.size(), -1);
  BadResidue bad;
  const auto scratch = words(n);
  const RingTables ring{moduli.data(), tab.data(), n};
  const NttJob forward{{limbs, 2, n}, ring, false, x.data(), y.data(), &bad};
  const NttJob inverse{{limbs, 2, n}, ring, true, y.data(), z.data(), &bad};
  for (int64_t task = 0; task < 2 * limbs; ++task) table.lattice.ntt(forward, task, scratch.get());
  for (int64_t task = 0; task < 2 * limbs; ++task) table.lattice.ntt(inverse, task, scratch.get());
  expect(z == x && !bad.seen, table.name, "the inverse transform", n);
  for (int64_t run = 0; run < 2 * limbs; ++run) {
    const uint64_t q = static_cast<uint64_t>(moduli[static_cast<size_t>(run / 2)]);
    const uint64_t psi = root_of(static_cast<int64_t>(q), n);
    for (const int64_t i : {int64_t{0}, int64_t{1}, n / 2 + 1, n - 1}) {
      const uint64_t point = power(psi, static_cast<uint64_t>(2 * bit_reversed(i, n) + 1), q);
      uint64_t value = 0;
      for (int64_t k = n - 1; k >= 0; --k) {
        value = (value * point + static_cast<uint64_t>(x[static_cast<size_t>(run * n + k)])) % q;
      }
      expect(static_cast<uint64_t>(y[static_cast<size_t>(run * n + i)]) == value, table.name, "the transform", n);
    }
  }
}

void check_tensor_square(const KernelTable& table, int64_t n, const Residues& moduli) {
  const int64_t limbs = static_cast<int64_t>(moduli.size());
  const Residues x = residues(moduli, 2 * 2 * n), shift = residues(moduli, 2), a = residues(moduli, 2 * 3);
  for (const bool plain : {true, false}) {
    Residues y(static_cast<size_t>(limbs * 2 * 3 * n), -1);
    BadResidue bad;
    const TensorSquareParams p{limbs, 2, 1, n, 1, 3};
    const TensorSquareJob job{
        p, x.data(), plain ? nullptr : shift.data(), plain ? nullptr : a.data(), moduli.data(), y.data(), &bad};
    for (int64_t task = 0; task < tensor_square_tasks(p); ++task) table.lattice.tensor_square(job, task);
    bool good = !bad.seen;
    for (int64_t row = 0; row < 2 * limbs; ++row) {
      using Wide = unsigned __int128;
      const Wide q = static_cast<Wide>(moduli[static_cast<size_t>(row / 2)]);
      const auto at = [&](const Residues& v, int64_t i) { return static_cast<Wide>(v[static_cast<size_t>(i)]); };
      const Wide a0 = plain ? 0 : at(a, row * 3), a1 = plain ? 0 : at(a, row * 3 + 1);
      const Wide a2 = plain ? 1 : at(a, row * 3 + 2);
      for (int64_t k = 0; k < n; ++k) {
        const Wide z0 = at(x, row * 2 * n + k) + (plain ? 0 : at(shift, row)), z1 = at(x, row * 2 * n + n + k);
        good = good && at(y, row * 3 * n + k) == ((a2 * z0 + a1) % q * z0 + a0) % q &&
               at(y, row * 3 * n + n + k) == (2 * a2 * z0 + a1) % q * z1 % q &&
               at(y, row * 3 * n + 2 * n + k) == z1 * z1 % q * a2 % q;
      }
    }
    expect(good, table.name, plain ? "the square" : "the quadratic", n);
  }
}

// The quadratic of windows of 3 x 2 places is the sum of theirs.
void check_tensor_square_pool(const KernelTable& table, int64_t n, const Residues& moduli) {
  const int64_t limbs = static_cast<int64_t>(moduli.size());
  const Residues x = residues(moduli, 2 * 7 * 4 * 2 * n), shift = residues(moduli, 2), a = residues(moduli, 2 * 3);
  for (const bool plain : {true, false}) {
    Residues all(static_cast<size_t>(limbs * 2 * 28 * 3 * n), -1), y(static_cast<size_t>(limbs * 2 * 4 * 3 * n), -1);
    BadResidue bad;
    TensorSquareParams p{limbs, 2, 28, n, 1, 3};
    TensorSquareJob job{p,          x.data(), plain ? nullptr : shift.data(), plain ? nullptr : a.data(), moduli.data(),
                        all.data(), &bad};
    for (int64_t task = 0; task < tensor_square_tasks(p); ++task) table.lattice.tensor_square(job, task);
    job.p.width = 4;
    job.p.pool = {3, 2};
    job.y = y.data();
    for (int64_t task = 0; task < tensor_square_pool_tasks(job.p); ++task) table.lattice.tensor_square_pool(job, task);
    bool good = !bad.seen;
    for (int64_t row = 0; row < 2 * limbs; ++row) {
      for (int64_t window = 0; window < 4; ++window) {
        for (int64_t k = 0; k < 3 * n; ++k) {
          int64_t sum = 0;
          for (int64_t place = 0; place < 6; ++place) {
            const int64_t at = (window / 2 * 3 + place / 2) * 4 + window % 2 * 2 + place % 2;
            sum += all[static_cast<size_t>((row * 28 + at) * 3 * n + k)];
          }
          const int64_t q = moduli[static_cast<size_t>(row / 2)];
          good = good && y[static_cast<size_t>((row * 4 + window) * 3 * n + k)] == sum % q;
        }
      }
    }
    expect(good, table.name, plain ? "the square's pool" : "the quadratic's pool", n);
  }
}

// Results of relinearise and rescale on data that depend on the seed only; blocks of `block` positions.
Residues switch_and_rescale(const LatticeKernels& kernels, int64_t n, const Residues& moduli,
                            const std::vector<uint32_t>& tab, uint64_t seed, int64_t block) {
  rng.seed(seed);
  const int64_t limbs = static_cast<int64_t>(moduli.size()) - 1, positions = 3;
  const Residues level(moduli.begin(), moduli.end() - 1);
  const Residues x = residues(level, positions * 3 * n);
  Residues keys;
  for (int64_t row = 0; row < 2 * limbs; ++row) {
    const Residues part = residues(moduli, n);
    keys.insert(keys.end(), part.begin(), part.end());
  }
  Residues y(static_cast<size_t>(limbs * positions * 2 * n), -1), z(y.size() - static_cast<size_t>(positions * 2 * n));
  std::vector<uint32_t> inverse, inverse_last;
  for (const int64_t q : level) {
    const uint32_t word = static_cast<uint32_t>(q);
    inverse.push_back(inverse_word(static_cast<uint32_t>(moduli.back() % q), word));
    if (q != level.back()) inverse_last.push_back(inverse_word(static_cast<uint32_t>(level.back() % q), word));
  }
  BadResidue bad;
  RelineariseJob job{};
  job.p = {limbs, positions, n};
  job.plan = plan_relinearise(job.p);
  job.plan.scratch_words += (block - job.plan.positions) * (limbs + 2) * n;
  job.plan.positions = block;
  job.ring = {moduli.data(), tab.data(), n};
  job.x = x.data(), job.keys = keys.data(), job.inverse = inverse.data(), job.y = y.data(), job.bad = &bad;
  const auto packed = words(job.plan.packed_words);
  const auto scratch = words(job.plan.scratch_words);
  for (int64_t row = 0; row < limbs * 2 * (limbs + 1); ++row) kernels.pack_keys(job, row, packed.get());
  job.packed = packed.get();
  for (int64_t first = 0; first < positions; first += block) {
    kernels.relinearise(job, first, std::min(block, positions - first), scratch.get());
  }
  if (limbs >= 2) {
    const RingParams p{limbs, positions * 2, n};
    const RescaleJob last{p, job.ring, y.data(), inverse_last.data(), z.data(), &bad};
    const auto rescale_scratch = words(rescale_scratch_words(p));
    for (int64_t task = 0; task < p.runs; ++task) kernels.rescale(last, task, rescale_scratch.get());
  }
  if (bad.seen) ++failures;
  y.insert(y.end(), z.begin(), z.end());
  return y;
}

void check_refusal(const KernelTable& table, int64_t n, const Residues& moduli, const std::vector<uint32_t>& tab) {
  for (const int64_t value : {int64_t{-1}, moduli[0], INT64_MAX, INT64_MIN}) {
    for (const int64_t at : {int64_t{0}, n - 1}) {
      Residues x(static_cast<size_t>(n), 0), y(x.size());
      x[static_cast<size_t>(at)] = value;
      BadResidue bad;
      const auto scratch = words(n);
      table.lattice.ntt({{1, 1, n}, {moduli.data(), tab.data(), n}, false, x.data(), y.data(), &bad}, 0, scratch.get());
      expect(bad.seen, table.name, "a residue out of range, unnoticed,", n);
    }
  }
}

void run(const KernelTable& table) {
  const std::vector<std::vector<int>> widths = {{31, 30, 31}, {30, 17, 29, 31}, {31, 31}, {20, 31, 30, 28, 30, 30}};
  for (int64_t n = 8; n <= 32768; n *= 2) {
    const bool small = n <= 1024;
    for (size_t i = 0; i < (small ? widths.size() : 1); ++i) {
      if (n > 256 && i % 2 == 1) continue;  // no prime of 17 bits is 1 modulo 2n
      const Residues moduli = primes(n, widths[i]);
      const std::vector<uint32_t> tab = tables(moduli, n);
      if (n >= table.lattice.min_degree) {
        check_ntt(table, n, moduli, tab);
        check_refusal(table, n, moduli, tab);
        const Residues expected = switch_and_rescale(kGenericKernels.lattice, n, moduli, tab, n + i, 1);
        for (const int64_t block : {1, 2}) {
          expect(switch_and_rescale(table.lattice, n, moduli, tab, n + i, block) == expected, table.name,
                 "relinearise or rescale", n);
        }
      }
      if (small) check_tensor_square(table, n - static_cast<int64_t>(i), moduli);
      if (n <= 64) check_tensor_square_pool(table, n - static_cast<int64_t>(i), moduli);
    }
  }
  check_tensor_square(table, 5000, {2, 999, 2147483647});
  check_tensor_square_pool(table, 100, {2, 999, 2147483647});
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
