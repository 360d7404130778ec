// rescale: the last limb to the natural order with half of its modulus added, then one fused launch for the others.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda_launch.h"
#include "launch.cuh"
#include "mod_down.cuh"
#include "ntt_inverse.cuh"

namespace mcfhe::cuda {
namespace {

// y_j = (x_j - NTT_j(last)) / p: one part of one run of one limb a block, limbs and parts over blockIdx.x so that the
// readers of a run are neighbours, runs over blockIdx.y.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1024 / S::kThreads)
    rescale_kernel(const int log_size, const int64_t runs,
                   const int64_t* __restrict__ x,                    // [L, runs, n], of which the first gridDim.y runs
                   const uint32_t* __restrict__ last,                // [gridDim.y, n], natural order
                   const int32_t* __restrict__ tables,               // [L, 4, n]
                   const DivisionConstants* __restrict__ constants,  // [L]
                   int64_t* __restrict__ y) {                        // [L - 1, runs, n], likewise
  MCFHE_DYNAMIC_SHARED(memory);
  const int64_t limb = blockIdx.x / S::kParts;
  const int64_t run = blockIdx.y;
  const Part<S> part{log_size, blockIdx.x % S::kParts};
  const int64_t n = part.polynomial_size();
  const DivisionConstants c = constants[limb];
  forward_part(
      reinterpret_cast<uint32_t*>(memory), shifted_words(last + run * n, c),
      [&](int, int pair, uint32_t low, uint32_t high) {
        // Loaded and computed here, not kept in registers through the transform.
        const uint32_t block = opaque(blockIdx.x);
        const int64_t target = block / S::kParts;
        const DivisionConstants d = constants[target];
        const int64_t at = (target * runs + opaque(blockIdx.y)) * n + Part<S>{log_size, block % S::kParts}.first();
        const uint2 v = load_pair(x + at, pair);
        store_pair(y + at, pair, divide(v.x, low, d), divide(v.y, high, d));
      },
      forward_roots(tables + limb * 4 * n, n, c.q), part);
}

}  // namespace

int64_t rescale_chunk(const RingParams& p) {
  return std::clamp<int64_t>(kWorkspaceWords / p.n, 1, std::clamp<int64_t>(p.runs, 1, kMaxGridYZ));
}

int64_t rescale_workspace(const RingParams& p) { return p.limbs * kDivisionWords + rescale_chunk(p) * p.n; }

cudaError_t launch_rescale(const RingParams& p, const int64_t* x, const int32_t* tables, const int64_t* moduli,
                           uint32_t* workspace, int64_t* y, cudaStream_t stream) {
  const int64_t last = p.limbs - 1;
  if (!is_ring_degree(p.n) || last < 1 || !aligned16({x, tables, workspace, y})) return cudaErrorInvalidValue;
  if (p.runs == 0) return cudaSuccess;
  const PartLaunch part(log2_exact(p.n));
  const int64_t blocks = last << part.split;
  if (blocks > kMaxGridX) return cudaErrorInvalidConfiguration;
  DivisionConstants* const constants = reinterpret_cast<DivisionConstants*>(workspace);
  uint32_t* const words = workspace + p.limbs * kDivisionWords;
  cudaError_t error = launch_division_constants(p.limbs, last, moduli, constants, stream);
  const int64_t chunk = rescale_chunk(p);
  for (int64_t run = 0; run < p.runs && error == cudaSuccess; run += chunk) {
    const int64_t count = std::min(chunk, p.runs - run);
    const int64_t* const from = x + run * p.n;
    int64_t* const to = y + run * p.n;
    error = launch_inverse(p.n, 1, count, Rows{0, p.n}, Rows{0, p.n}, Rounding::kHalf, from + last * p.runs * p.n,
                           tables + last * 4 * p.n, moduli + last, words, stream);
    if (error != cudaSuccess) break;
    const LaunchShape grid = part.shape(blocks, count);
    error = part.dispatch([&]<class S>() {
      return launch(MCFHE_KERNEL(rescale_kernel<S>), grid, stream, part.log_size, p.runs, from, words, tables,
                    constants, to);
    });
  }
  return error;
}

}  // namespace mcfhe::cuda
