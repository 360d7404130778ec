// expand_uniform: uniform residues from seeds, the second components of seeded ciphertexts. Hashes, so arithmetic sets
// the pace: about 290 instructions a residue.
//
// SEAL (sample_poly_uniform) cuts a seed's stream of 64-bit words into rows of n, one a limb, and reduces them. A word
// that would favour small residues, one in 2^33, is refused, and after all rows, in order, replaced by the words that
// follow. So the words are independent but for the rare second pass, which has a kernel of its own.
#include <cuda_runtime.h>

#include <cstdint>

#include "blake2xb.cuh"
#include "block_reduce.cuh"
#include "fast_div.h"
#include "kernels/cuda_launch.h"
#include "kernels/modmath.h"
#include "launch.cuh"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = static_cast<int>(blake2::kNodes);  // a thread makes a node of every output of its block
constexpr int kOutputs = kThreads;                          // and, before that, the root of one of them
constexpr int kNodeWords = blake2::kStateWords;
constexpr int kReplaceThreads = 256;
constexpr uint32_t kRefused = ~uint32_t{0};

// Words from here on are refused: the largest multiple of b below 2^64, less one, as SEAL has it.
__device__ __forceinline__ uint64_t refused_from(const Modulus& m) { return m.mu * m.b - 1; }

__device__ __forceinline__ uint32_t residue(uint64_t word, const Modulus& m) {
  return word < refused_from(m) ? static_cast<uint32_t>(barrett_u64(word, m)) : kRefused;
}

struct Job {
  ExpandParams p;
  WideDiv row;            // n
  int64_t outputs;        // of a seed
  const uint64_t* seeds;  // [count, 8]
  const int64_t* moduli;  // [L]
  uint32_t* y;            // [L, count, n]

  __device__ __forceinline__ uint32_t* at(int64_t limb, int64_t seed, int64_t i) const {
    return y + (limb * p.count + seed) * p.n + i;
  }
};

// The last limb asked for: a thread stays in one for many words, and its constants take a division.
struct LastLimb {
  int64_t limb = -1;
  Modulus modulus{};

  __device__ __forceinline__ const Modulus& of(const int64_t* moduli, int64_t l) {
    if (l != limb) {
      limb = l;
      modulus = make_modulus(__ldg(moduli + l));
    }
    return modulus;
  }
};

// kWhole: a node's words are of one limb and one aligned run of y.
template <bool kWhole>
__global__ void __launch_bounds__(kThreads) expand_uniform_kernel(const Job job,
                                                                  unsigned long long* refused_words) {  // [count]
  alignas(16) __shared__ uint64_t roots[kOutputs][blake2::kStateWords];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kOutputs;
  const int64_t left = job.p.count * job.outputs - first;
  int64_t seed = first / job.outputs;
  int64_t counter = first - seed * job.outputs;
  if (thread < left) {
    const int64_t mine = (first + thread) / job.outputs;
    uint64_t root[8];
    blake_root(job.seeds + mine * 8, static_cast<uint64_t>(first + thread - mine * job.outputs), root);
#pragma unroll
    for (int i = 0; i < 8; ++i) roots[thread][i] = root[i];
  }
  __syncthreads();
  LastLimb last;
#pragma unroll 1
  for (int output = 0; output < kOutputs && output < left; ++output) {
    uint64_t root[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) root[i] = roots[output][i];
    uint64_t words[8];
    blake_node(root, thread, words);
    const int64_t word = counter * blake2::kOutputWords + thread * kNodeWords;
    int64_t limb = job.row.quotient(word);
    int64_t at = word - limb * job.p.n;
    unsigned refused = 0;
    if constexpr (kWhole) {
      if (limb < job.p.limbs) {
        const Modulus& m = last.of(job.moduli, limb);
        uint32_t r[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          r[i] = residue(words[i], m);
          refused += r[i] == kRefused ? 1 : 0;
        }
        uint4* const run = reinterpret_cast<uint4*>(job.at(limb, seed, at));
        run[0] = make_uint4(r[0], r[1], r[2], r[3]);
        run[1] = make_uint4(r[4], r[5], r[6], r[7]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i, ++at) {
        if (at == job.p.n) {
          at = 0;
          ++limb;
        }
        if (limb >= job.p.limbs) break;
        const uint32_t r = residue(words[i], last.of(job.moduli, limb));
        refused += r == kRefused ? 1 : 0;
        *job.at(limb, seed, at) = r;
      }
    }
    if (refused != 0) atomicAdd(refused_words + seed, static_cast<unsigned long long>(refused));
    if (++counter == job.outputs) {
      counter = 0;
      ++seed;
    }
  }
}

struct Minimum {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a < b ? a : b; }
};

// A seed's words behind all rows, one after the other.
struct Replacements {
  const uint64_t* seed;
  int64_t next;

  __device__ __forceinline__ uint64_t draw() {
    uint64_t root[8];
    uint64_t words[8];
    blake_root(seed, static_cast<uint64_t>(next / blake2::kOutputWords), root);
    blake_node(root, static_cast<int>(next % blake2::kOutputWords / kNodeWords), words);
    const int place = static_cast<int>(next % kNodeWords);
    ++next;
    uint64_t word = words[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) word = i == place ? words[i] : word;
    return word;
  }
};

// A block searches the rows of one seed for what was refused, in order.
__global__ void __launch_bounds__(kReplaceThreads) replace_refused_kernel(const Job job,
                                                                          const int64_t* refused_words) {  // [count]
  __shared__ unsigned long long scratch[kReplaceThreads / kWarpSize];
  __shared__ long long found;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t total = job.p.limbs * job.p.n;
  for (int64_t seed = blockIdx.x; seed < job.p.count; seed += gridDim.x) {
    Replacements stream{job.seeds + seed * 8, total};
    int64_t from = 0;
    for (int64_t missing = refused_words[seed]; missing > 0; --missing) {
      int64_t mine = from + thread;
      for (; mine < total; mine += kReplaceThreads) {
        const int64_t limb = job.row.quotient(mine);
        if (*job.at(limb, seed, mine - limb * job.p.n) == kRefused) break;
      }
      const unsigned long long least = block_combine(static_cast<unsigned long long>(mine), Minimum{}, scratch);
      if (thread == 0) {
        found = static_cast<long long>(least);
        const int64_t limb = job.row.quotient(found);
        const Modulus m = make_modulus(__ldg(job.moduli + limb));
        uint32_t r = kRefused;
        while (r == kRefused) r = residue(stream.draw(), m);
        *job.at(limb, seed, found - limb * job.p.n) = r;
      }
      __syncthreads();  // `found` is next written behind block_combine's own barrier
      from = found + 1;
    }
  }
}

Job make_job(const ExpandParams& p, const uint64_t* seeds, const int64_t* moduli, int32_t* y) {
  return {p,     WideDiv(p.n), ceil_div(p.limbs * p.n, blake2::kOutputWords),
          seeds, moduli,       reinterpret_cast<uint32_t*>(y)};
}

}  // namespace

cudaError_t launch_replace_refused(const ExpandParams& p, const uint64_t* seeds, const int64_t* moduli,
                                   const int64_t* refused, int32_t* y, cudaStream_t stream) {
  if (p.limbs * p.count * p.n == 0) return cudaSuccess;
  const LaunchShape shape{dim3(static_cast<unsigned>(p.count < kMaxGridX ? p.count : kMaxGridX)),
                          dim3(kReplaceThreads)};
  return launch(MCFHE_KERNEL(replace_refused_kernel), shape, stream, make_job(p, seeds, moduli, y), refused);
}

cudaError_t launch_expand_uniform(const ExpandParams& p, const uint64_t* seeds, const int64_t* moduli, int64_t* refused,
                                  int32_t* y, cudaStream_t stream) {
  if (p.limbs * p.count * p.n == 0) return cudaSuccess;
  const Job job = make_job(p, seeds, moduli, y);
  unsigned long long* const counts = reinterpret_cast<unsigned long long*>(refused);
  const int64_t blocks = ceil_div<int64_t>(p.count * job.outputs, kOutputs);
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  cudaError_t error = cudaMemsetAsync(refused, 0, static_cast<size_t>(p.count) * sizeof(int64_t), stream);
  if (error != cudaSuccess) return error;
  const LaunchShape shape{dim3(static_cast<unsigned>(blocks)), dim3(kThreads)};
  const bool whole = p.n % kNodeWords == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
  error = whole ? launch(MCFHE_KERNEL(expand_uniform_kernel<true>), shape, stream, job, counts)
                : launch(MCFHE_KERNEL(expand_uniform_kernel<false>), shape, stream, job, counts);
  return error != cudaSuccess ? error : launch_replace_refused(p, seeds, moduli, refused, y, stream);
}

}  // namespace mcfhe::cuda
