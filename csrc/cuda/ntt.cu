// ntt: transforms of int64 tensors. Forward: one launch. Inverse: one launch up to n = 8192, above it a second in
// place.
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda_launch.h"
#include "launch.cuh"
#include "ntt_inverse.cuh"
#include "ntt_rows.cuh"

namespace mcfhe::cuda {
namespace {

// One part a block: parts of a limb's rows over blockIdx.x, limbs over blockIdx.y.
template <class S>
__global__ void __launch_bounds__(S::kThreads, 1024 / S::kThreads)
    ntt_forward_kernel(const int log_size, const Rows rows,
                       const int64_t* __restrict__ x,       // rows as `rows` says
                       const int32_t* __restrict__ tables,  // [L, 4, n]
                       const int64_t* __restrict__ moduli,  // [L]
                       int64_t* __restrict__ y) {           // as x
  MCFHE_DYNAMIC_SHARED(memory);
  const int64_t limb = blockIdx.y;
  const Part<S> part{log_size, blockIdx.x % S::kParts};
  const int64_t n = part.polynomial_size();
  const int64_t at = rows.at(limb, blockIdx.x / S::kParts);
  const uint32_t q = static_cast<uint32_t>(__ldg(moduli + limb));
  forward_part(
      reinterpret_cast<uint32_t*>(memory), Residues{x + at},
      [&](int, int pair, uint32_t low, uint32_t high) {
        // Computed here, not kept in registers through the transform.
        int64_t* const to = y + rows.at(opaque(blockIdx.y), opaque(blockIdx.x) / S::kParts) + part.first();
        store_pair(to, pair, canonical(low, q), canonical(high, q));
      },
      forward_roots(tables + limb * 4 * n, n, q), part);
}

}  // namespace

cudaError_t launch_ntt(const RingParams& p, bool inverse, const int64_t* x, const int32_t* tables,
                       const int64_t* moduli, int64_t* y, cudaStream_t stream) {
  if (!is_ring_degree(p.n) || !aligned16({x, tables, y})) return cudaErrorInvalidValue;
  if (p.limbs * p.runs == 0) return cudaSuccess;
  const Rows rows{p.runs * p.n, p.n};
  if (inverse) return launch_inverse(p.n, p.limbs, p.runs, rows, rows, Rounding::kNone, x, tables, moduli, y, stream);
  const PartLaunch part(log2_exact(p.n));
  const int64_t blocks = p.runs << part.split;
  if (blocks > kMaxGridX || p.limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape grid = part.shape(blocks, p.limbs);
  return part.dispatch([&]<class S>() {
    return launch(MCFHE_KERNEL(ntt_forward_kernel<S>), grid, stream, part.log_size, rows, x, tables, moduli, y);
  });
}

}  // namespace mcfhe::cuda
