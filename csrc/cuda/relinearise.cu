// relinearise: hybrid key switching with one special prime, in three transforming launches a chunk of positions.
//
//   digits    c2 of every limb to the natural order, packed                         [positions, L, n]
//   special   modulo p: every digit through the transform into sums with its keys, the two sums back to the natural
//             order with floor(p / 2) added, packed                                 [positions, 2, n]
//   target    modulo q_j: the same sums, then (sum - NTT(special)) / p, plus c0 and c1
//
// (L + 1)(L + 2) transforms a position, the least there can be. A transformed digit never leaves the registers of its
// block, nor do the sums. The digit of limb j modulo q_j is c2 itself, which was transformed to begin with.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "device_traits.h"
#include "kernels/cuda_launch.h"
#include "launch.cuh"
#include "limb.cuh"
#include "mod_down.cuh"
#include "ntt_inverse.cuh"

namespace mcfhe::cuda {
namespace {

constexpr int kPackThreads = 256;

// keys [L, 2, L + 1, n] times 2^32 to words [L + 1, L, n / 2, 2, 2]: modulus, digit, pair, component, entry of the
// pair, so that 16 bytes are what a thread multiplies a pair with. Pairs over blockIdx.x, digits over blockIdx.y,
// moduli over blockIdx.z.
__global__ void __launch_bounds__(kPackThreads)
    pack_keys_kernel(const int64_t n, const int64_t* __restrict__ keys, const DivisionConstants* __restrict__ constants,
                     uint32_t* __restrict__ packed) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kPackThreads + threadIdx.x;
  if (2 * pair >= n) return;
  const int64_t digit = blockIdx.y;
  const int64_t digits = gridDim.y;
  const int64_t modulus = blockIdx.z;
  const int64_t moduli = gridDim.z;
  const Limb limb{constants[modulus].mu, 0, 0, constants[modulus].q};
  const auto load = [&](int64_t component) {
    const uint2 key = load_pair(keys + ((digit * 2 + component) * moduli + modulus) * n, pair);
    return make_uint2(barrett(static_cast<uint64_t>(key.x) << 32, limb),
                      barrett(static_cast<uint64_t>(key.y) << 32, limb));
  };
  const uint2 k0 = load(0);
  const uint2 k1 = load(1);
  reinterpret_cast<uint4*>(packed)[(modulus * digits + digit) * (n / 2) + pair] = make_uint4(k0.x, k0.y, k1.x, k1.y);
}

// The inner product of a part's digits with both components of the keys, loose. 32 registers: unreduced 64-bit sums
// would save a few instructions a product and cost 32 more, which the transform in between needs.
struct KeySums {
  uint32_t of[2][kValues] = {};

  // The r-th pair of a digit, loose; keys: the packed words of this digit and part.
  __device__ __forceinline__ void add(int r, int64_t pair, uint32_t low, uint32_t high, const uint32_t* keys,
                                      uint32_t inverse, uint32_t q) {
    const uint4 key = __ldg(reinterpret_cast<const uint4*>(keys) + pair);
    add_product(of[0][2 * r], low, key.x, inverse, q);
    add_product(of[0][2 * r + 1], high, key.y, inverse, q);
    add_product(of[1][2 * r], low, key.z, inverse, q);
    add_product(of[1][2 * r + 1], high, key.w, inverse, q);
  }

  __device__ static __forceinline__ void add_product(uint32_t& sum, uint32_t x, uint32_t key, uint32_t inverse,
                                                     uint32_t q) {
    sum = canonical(sum, q) + canonical(multiply_montgomery(x, key, inverse, q), q);
  }

  // Moves component 1 to where component 0 was, so that one copy of the code that follows serves both.
  __device__ __forceinline__ void next_component() {
#pragma unroll
    for (int i = 0; i < kValues; ++i) of[0][i] = of[1][i];
  }
};

// One call's sizes and tables, limb L being the special one.
struct KeySwitch {
  int log_size;
  int limbs;                           // L
  const uint32_t* keys;                // packed
  const int32_t* tables;               // [L + 1, 4, n]
  const DivisionConstants* constants;  // [L + 1]
};

// Parts over blockIdx.x, positions over blockIdx.y.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    switch_special_kernel(const KeySwitch s,
                          const uint32_t* __restrict__ digits,  // [gridDim.y, L, n], natural order
                          uint32_t* __restrict__ special) {     // [gridDim.y, 2, n]
  MCFHE_DYNAMIC_SHARED(memory);
  uint32_t* const shared = reinterpret_cast<uint32_t*>(memory);
  const int64_t position = blockIdx.y;
  const Part<S> part{s.log_size, blockIdx.x};
  const int64_t n = part.polynomial_size();
  const int64_t first = part.first();
  const int32_t* const tables = s.tables + int64_t{4} * s.limbs * n;
  const uint32_t q = s.constants[s.limbs].q;
  const uint32_t unit = s.constants[s.limbs].unit;
  const uint32_t inverse = s.constants[s.limbs].montgomery;
  KeySums sums;
  for (int i = 0; i < s.limbs; ++i) {
    const uint32_t* const keys = s.keys + 2 * ((static_cast<int64_t>(s.limbs) * s.limbs + i) * n + first);
    forward_part(
        shared, Words{digits + (position * s.limbs + i) * n, 0, unit, q},
        [&](int r, int pair, uint32_t low, uint32_t high) { sums.add(r, pair, low, high, keys, inverse, q); },
        forward_roots(tables, n, q), part);
  }
  const Part<S> last = part.fresh();
  const Roots roots = inverse_roots(tables, n, q);
  const Scale scale(roots, rounding_addend(Rounding::kHalf, q));
#pragma unroll 1
  for (int k = 0; k < 2; ++k) {
    uint32_t* const to = special + (static_cast<int64_t>(opaque(blockIdx.y)) * 2 + k) * n + last.first();
    inverse_part(
        sums.of[0], shared, [&](int64_t i, uint32_t r) { to[i] = S::kSplit == 0 ? scale(r) : r; }, roots, last);
    sums.next_component();
  }
}

// Limbs and parts over blockIdx.x, so that the readers of a digit are neighbours; positions over blockIdx.y.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1)
    switch_target_kernel(const KeySwitch s, const int64_t positions,
                         const int64_t* __restrict__ x,         // [L, positions, 3, n], the first gridDim.y positions
                         const uint32_t* __restrict__ digits,   // [gridDim.y, L, n], natural order
                         const uint32_t* __restrict__ special,  // [gridDim.y, 2, n], natural order
                         int64_t* __restrict__ y) {             // [L, positions, 2, n], likewise
  MCFHE_DYNAMIC_SHARED(memory);
  uint32_t* const shared = reinterpret_cast<uint32_t*>(memory);
  const int64_t position = blockIdx.y;
  const int target = static_cast<int>(blockIdx.x / S::kParts);
  const Part<S> part{s.log_size, blockIdx.x % S::kParts};
  const int64_t n = part.polynomial_size();
  const int64_t first = part.first();
  const uint32_t q = s.constants[target].q;
  const uint32_t unit = s.constants[target].unit;
  const uint32_t inverse = s.constants[target].montgomery;
  const Roots roots = forward_roots(s.tables + int64_t{4} * target * n, n, q);
  KeySums sums;
  for (int i = 0; i < s.limbs; ++i) {
    const uint32_t* const keys = s.keys + 2 * ((static_cast<int64_t>(target) * s.limbs + i) * n + first);
    const auto add = [&](int r, int pair, uint32_t low, uint32_t high) {
      sums.add(r, pair, low, high, keys, inverse, q);
    };
    if (i == target) {
      for_pairs(part, [&](int r, int pair) {
        const uint2 own = load_pair(x + ((target * positions + position) * 3 + 2) * n + first, pair);
        add(r, pair, own.x, own.y);
      });
    } else {
      forward_part(shared, Words{digits + (position * s.limbs + i) * n, 0, unit, q}, add, roots, part);
    }
  }
  const uint32_t offset = s.constants[target].offset;
  const Part<S> last = part.fresh();
#pragma unroll 1
  for (int k = 0; k < 2; ++k) {
    forward_part(
        shared, Words{special + (static_cast<int64_t>(opaque(blockIdx.y)) * 2 + k) * n, offset, unit, q},
        [&](int r, int pair, uint32_t low, uint32_t high) {
          // Loaded and computed here, not kept in registers through the transform.
          const DivisionConstants c = s.constants[target];
          const int64_t at = target * positions + opaque(blockIdx.y);
          const uint2 v = load_pair(x + (at * 3 + k) * n + last.first(), pair);
          store_pair(y + (at * 2 + k) * n + last.first(), pair,
                     canonical(divide(canonical(sums.of[0][2 * r], c.q), low, c) + v.x, c.q),
                     canonical(divide(canonical(sums.of[0][2 * r + 1], c.q), high, c) + v.y, c.q));
        },
        roots, last);
    sums.next_component();
  }
}

// A chunk may take this much to fill the last wave of its blocks.
constexpr int64_t kMostChunkWords = int64_t{1} << 25;

// Positions of a chunk. From n = 8192 on a block fills a multiprocessor, and the special prime has fewest of them:
// where its blocks are whole waves, those of the other L are too.
int64_t chunk_positions(const RelineariseParams& p, int64_t words_each) {
  DeviceTraits device{};
  const int64_t processors = current_device_traits(device) == cudaSuccess ? device.processors : 1;
  const int64_t fit = std::max<int64_t>(kWorkspaceWords / words_each, 1);
  const int64_t wave = ceil_div<int64_t>(processors, int64_t{1} << PartLaunch(log2_exact(p.n)).split);
  const int64_t whole = ceil_div(fit, wave) * wave;
  const int64_t chunk = whole * words_each <= kMostChunkWords ? whole : fit;
  return std::min(chunk, std::clamp<int64_t>(p.positions, 1, kMaxGridYZ));
}

// Workspace in words: constants, packed keys, then digits and special of one chunk of positions.
struct Workspace {
  int64_t keys, digits, special, total;
  int64_t chunk;  // positions

  explicit Workspace(const RelineariseParams& p) {
    const int64_t each = (p.limbs + 2) * p.n;
    chunk = chunk_positions(p, each);
    keys = (p.limbs + 1) * kDivisionWords;
    digits = keys + 2 * p.limbs * (p.limbs + 1) * p.n;
    special = digits + chunk * p.limbs * p.n;
    total = special + chunk * 2 * p.n;
  }
};

cudaError_t launch_pack_keys(const RelineariseParams& p, const int64_t* keys, const DivisionConstants* constants,
                             uint32_t* packed, cudaStream_t stream) {
  const LaunchShape grid{dim3(static_cast<unsigned>(ceil_div<int64_t>(p.n / 2, kPackThreads)),
                              static_cast<unsigned>(p.limbs), static_cast<unsigned>(p.limbs + 1)),
                         dim3(kPackThreads)};
  return launch(MCFHE_KERNEL(pack_keys_kernel), grid, stream, p.n, keys, constants, packed);
}

}  // namespace

int64_t relinearise_workspace(const RelineariseParams& p) { return Workspace(p).total; }

cudaError_t launch_relinearise(const RelineariseParams& p, const int64_t* x, const int64_t* keys, const int32_t* tables,
                               const int64_t* moduli, uint32_t* workspace, int64_t* y, cudaStream_t stream) {
  if (!is_ring_degree(p.n) || p.limbs < 1 || !aligned16({x, keys, tables, workspace, y})) return cudaErrorInvalidValue;
  if (p.limbs >= kMaxGridYZ) return cudaErrorInvalidConfiguration;
  if (p.positions == 0) return cudaSuccess;
  const PartLaunch part(log2_exact(p.n));
  const Workspace at(p);
  uint32_t* const digits = workspace + at.digits;
  uint32_t* const special = workspace + at.special;
  DivisionConstants* const constants = reinterpret_cast<DivisionConstants*>(workspace);
  const KeySwitch s{part.log_size, static_cast<int>(p.limbs), workspace + at.keys, tables, constants};
  cudaError_t error = launch_division_constants(p.limbs + 1, p.limbs, moduli, constants, stream);
  if (error == cudaSuccess) error = launch_pack_keys(p, keys, constants, workspace + at.keys, stream);
  for (int64_t position = 0; position < p.positions && error == cudaSuccess; position += at.chunk) {
    const int64_t count = std::min(at.chunk, p.positions - position);
    const int64_t* const from = x + position * 3 * p.n;
    int64_t* const to = y + position * 2 * p.n;
    const auto grid = [&](int64_t targets) { return part.shape(targets << part.split, count); };
    error = launch_inverse(p.n, p.limbs, count, Rows{p.positions * 3 * p.n, 3 * p.n}, Rows{p.n, p.limbs * p.n},
                           Rounding::kNone, from + 2 * p.n, tables, moduli, digits, stream);
    if (error != cudaSuccess) break;
    error = part.dispatch(
        [&]<class S>() { return launch(MCFHE_KERNEL(switch_special_kernel<S>), grid(1), stream, s, digits, special); });
    if (error != cudaSuccess) break;
    error = launch_inverse_tail(p.n, 1, 2 * count, Rows{0, p.n}, Rounding::kHalf, tables + p.limbs * 4 * p.n,
                                moduli + p.limbs, special, stream);
    if (error != cudaSuccess) break;
    error = part.dispatch([&]<class S>() {
      return launch(MCFHE_KERNEL(switch_target_kernel<S>), grid(p.limbs), stream, s, p.positions, from, digits, special,
                    to);
    });
  }
  return error;
}

}  // namespace mcfhe::cuda
