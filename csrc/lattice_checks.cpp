#include "lattice_checks.h"

#include <numeric>

#include "kernels/modmath.h"

namespace mcfhe {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kMinDegree = 8;
constexpr int64_t kMaxDegree = 32768;
constexpr int64_t kSeedBytes = 64;

std::string place(const char* op, const char* name) { return std::string("mcfhe::") + op + ": " + name; }

void check_residues_dim(const char* op, const Tensor& x) {
  check_int64(op, "x", x);
  STD_TORCH_CHECK(x.dim() >= 2, place(op, "x"), " has shape ", shape_string(x),
                  " but must be [limbs, ..., stream], 2 dimensions or more");
}

int64_t middle_size(const Tensor& x, int64_t from) {
  int64_t size = 1;
  for (int64_t i = from; i < x.dim() - 1; ++i) size *= x.size(i);
  return size;
}

// Ring degree n of tables [count, 4, n].
int64_t ring_degree(const char* op, const Tensor& tables, int64_t count, const Tensor& x) {
  STD_TORCH_CHECK(tables.scalar_type() == ScalarType::Int, place(op, "tables"),
                  " must be int32, as mcfhe.lattice.ring.ntt_tables makes them");
  check_same_device(op, "tables", tables, x);
  const bool shaped = tables.dim() == 3 && tables.size(0) == count && tables.size(1) == 4;
  const int64_t n = shaped ? tables.size(2) : 0;
  STD_TORCH_CHECK(shaped && n >= kMinDegree && n <= kMaxDegree && (n & (n - 1)) == 0, place(op, "tables"),
                  " has shape ", shape_string(tables), " but must be [", count, ", 4, n] with n a power of two, ",
                  kMinDegree, "..", kMaxDegree);
  return n;
}

void check_moduli_count(const char* op, const Tensor& x, const Tensor& moduli, int64_t count) {
  check_int64(op, "moduli", moduli);
  check_same_device(op, "moduli", moduli, x);
  STD_TORCH_CHECK(moduli.dim() == 1 && moduli.size(0) == count, place(op, "moduli"), " has shape ",
                  shape_string(moduli), " but must be [", count, "]");
}

RingParams ring_params(const char* op, const Tensor& x, const Tensor& tables, const Tensor& moduli) {
  check_residues_dim(op, x);
  check_moduli_count(op, x, moduli, x.size(0));
  RingParams p{};
  p.limbs = x.size(0);
  p.n = ring_degree(op, tables, p.limbs, x);
  const int64_t stream = x.size(x.dim() - 1);
  STD_TORCH_CHECK(stream % p.n == 0, place(op, "x"), " has ", stream, " streams, which n = ", p.n,
                  " of tables does not divide");
  p.runs = middle_size(x, 1) * (stream / p.n);
  return p;
}

// Row stride of a per-channel table [L, 1 or C] or [L, 1 or C, width].
int64_t channel_stride(const char* op, const char* name, const Tensor& table, const Tensor& x, int64_t channels,
                       int64_t width) {
  check_int64(op, name, table);
  check_same_device(op, name, table, x);
  const int64_t dim = width == 1 ? 2 : 3;
  const bool good = table.dim() == dim && table.size(0) == x.size(0) &&
                    (table.size(1) == 1 || table.size(1) == channels) && (width == 1 || table.size(2) == width);
  STD_TORCH_CHECK(good, place(op, name), " has shape ", shape_string(table), " but must be [", x.size(0), ", 1 or ",
                  channels, width == 1 ? "]" : ", 3]");
  return table.size(1) == 1 ? 0 : width;
}

}  // namespace

RingParams ntt_params(const char* op, const Tensor& x, const Tensor& tables, const Tensor& moduli) {
  return ring_params(op, x, tables, moduli);
}

RingParams rescale_params(const char* op, const Tensor& x, const Tensor& tables, const Tensor& moduli) {
  const RingParams p = ring_params(op, x, tables, moduli);
  STD_TORCH_CHECK(p.limbs >= 2, place(op, "x"), " has ", p.limbs, " limb(s); rescaling drops one and needs 2 or more");
  return p;
}

RelineariseParams relinearise_params(const char* op, const Tensor& x, const Tensor& keys, const Tensor& tables,
                                     const Tensor& moduli) {
  check_residues_dim(op, x);
  RelineariseParams p{};
  p.limbs = x.size(0);
  STD_TORCH_CHECK(p.limbs >= 1, place(op, "x"), " has no limbs");
  check_moduli_count(op, x, moduli, p.limbs + 1);
  p.n = ring_degree(op, tables, p.limbs + 1, x);
  const int64_t stream = x.size(x.dim() - 1);
  STD_TORCH_CHECK(stream == 3 * p.n, place(op, "x"), " has ", stream, " streams but must have 3 * n = ", 3 * p.n,
                  ": three components, as tensor_square makes them");
  p.positions = middle_size(x, 1);
  check_int64(op, "keys", keys);
  check_same_device(op, "keys", keys, x);
  STD_TORCH_CHECK(keys.dim() == 4 && keys.size(0) == p.limbs && keys.size(1) == 2 && keys.size(2) == p.limbs + 1 &&
                      keys.size(3) == p.n,
                  place(op, "keys"), " has shape ", shape_string(keys), " but must be [", p.limbs, ", 2, ", p.limbs + 1,
                  ", ", p.n, "]: digit, component, modulus, coefficient");
  return p;
}

TensorSquareParams tensor_square_params(const char* op, const Tensor& x, const std::optional<Tensor>& shift,
                                        const std::optional<Tensor>& coefficients, const Tensor& moduli,
                                        const std::optional<IntList>& pool) {
  check_residues_dim(op, x);
  check_moduli_count(op, x, moduli, x.size(0));
  const int64_t stream = x.size(x.dim() - 1);
  STD_TORCH_CHECK(stream % 2 == 0, place(op, "x"), " has ", stream, " streams but must have 2 * n: two components");
  TensorSquareParams p{};
  p.limbs = x.size(0);
  p.channels = x.dim() == 2 ? 1 : x.size(1);
  p.positions = x.dim() == 2 ? 1 : middle_size(x, 2);
  p.n = stream / 2;
  if (shift.has_value()) p.shift_channel_stride = channel_stride(op, "shift", *shift, x, p.channels, 1);
  if (coefficients.has_value()) {
    p.coefficients_channel_stride = channel_stride(op, "coefficients", *coefficients, x, p.channels, 3);
  }
  if (pool.has_value()) {
    STD_TORCH_CHECK(x.dim() == 5, place(op, "x"), " has shape ", shape_string(x),
                    " but must be [limbs, channels, height, width, 2 n] for a pool");
    p.width = x.size(3);
    p.pool = pool_window(op, *pool, x.size(2), p.width);
  }
  return p;
}

IntList tensor_square_shape(const Tensor& x, const TensorSquareParams& p) {
  IntList shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  shape.back() = 3 * p.n;
  if (p.pooled()) {
    shape[2] /= p.pool.h;
    shape[3] /= p.pool.w;
  }
  return shape;
}

ExpandParams expand_params(const char* op, const Tensor& seeds, const Tensor& moduli, int64_t n) {
  STD_TORCH_CHECK(seeds.scalar_type() == ScalarType::Byte && seeds.dim() == 2 && seeds.size(1) == kSeedBytes,
                  place(op, "seeds"), " has shape ", shape_string(seeds), " but must be uint8 [count, ", kSeedBytes,
                  "], one seed a row");
  check_int64(op, "moduli", moduli);
  check_same_device(op, "moduli", moduli, seeds);
  STD_TORCH_CHECK(moduli.dim() == 1, place(op, "moduli"), " has shape ", shape_string(moduli), " but must be [limbs]");
  STD_TORCH_CHECK(n >= 1 && n <= kMaxDegree, place(op, "n"), " = ", n, " must lie in 1..", kMaxDegree);
  return {moduli.numel(), seeds.size(0), n};
}

void check_ring_moduli(const char* op, const int64_t* moduli, int64_t count, int64_t n) {
  check_moduli_values(op, moduli, count);
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(moduli[i] % (2 * n) == 1, place(op, "moduli"), "[", i, "] = ", moduli[i],
                    " must be a prime that is 1 modulo 2n = ", 2 * n);
  }
}

void check_coprime_to(const char* op, const int64_t* moduli, int64_t count, int64_t divisor) {
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(std::gcd(moduli[i], divisor) == 1, place(op, "moduli"), "[", i, "] = ", moduli[i],
                    " shares a factor with ", divisor, ", by which the op divides; use distinct primes");
  }
}

void check_ring_tables(const char* op, const int32_t* tables, const int64_t* moduli, int64_t count, int64_t n) {
  for (int64_t l = 0; l < count; ++l) {
    const uint64_t q = static_cast<uint64_t>(moduli[l]);
    const auto entry = [&](int64_t row, int64_t i) {
      return static_cast<uint64_t>(static_cast<uint32_t>(tables[(4 * l + row) * n + i]));
    };
    bool good = entry(0, 0) == 1 && entry(2, 0) < q && entry(2, 0) * static_cast<uint64_t>(n) % q == 1;
    for (const int64_t row : {0, 2}) {
      for (const int64_t i : {int64_t{0}, int64_t{1}, n - 1}) {
        good = good && entry(row, i) < q && entry(row + 1, i) == shoup_quotient(entry(row, i), q);
      }
    }
    good = good && entry(0, 1) * entry(0, 1) % q == q - 1 && entry(0, 1) * entry(2, 1) % q == 1;
    STD_TORCH_CHECK(good, place(op, "tables"), "[", l, "] are not the transform's tables for modulus ", q,
                    "; make them with mcfhe.lattice.ring.ntt_tables from the same moduli");
  }
}

}  // namespace mcfhe
