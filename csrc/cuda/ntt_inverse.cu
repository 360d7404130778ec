// Inverse transforms: the parts of a polynomial, then in place the stages above them where there are any.
#include "ntt_inverse.cuh"

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "ntt_rows.cuh"

namespace mcfhe::cuda {

namespace {

// One part a block: parts of a limb's rows over blockIdx.x, limbs over blockIdx.y. Output canonical with 1/n and
// rounding if kSplit is 0, else loose and without either.
template <class S, typename Out>
__global__ void __launch_bounds__(S::kThreads, 1024 / S::kThreads)
    ntt_inverse_kernel(const int log_size, const Rows in, const Rows out, const Rounding rounding,
                       const int64_t* __restrict__ x,       // rows as `in` says
                       const int32_t* __restrict__ tables,  // [L, 4, n]
                       const int64_t* __restrict__ moduli,  // [L]
                       Out* __restrict__ y) {               // rows as `out` says
  MCFHE_DYNAMIC_SHARED(memory);
  const int64_t limb = blockIdx.y;
  const int64_t row = blockIdx.x / S::kParts;
  const Part<S> part{log_size, blockIdx.x % S::kParts};
  const int64_t n = part.polynomial_size();
  const int64_t first = part.first();
  const uint32_t q = static_cast<uint32_t>(__ldg(moduli + limb));
  const Roots roots = inverse_roots(tables + limb * 4 * n, n, q);
  uint32_t v[kValues];
  load_pairs(x + in.at(limb, row) + first, part, v);
  Out* const to = y + out.at(limb, row) + first;
  if constexpr (S::kSplit == 0) {
    const Scale scale(roots, rounding_addend(rounding, q));
    inverse_part(
        v, reinterpret_cast<uint32_t*>(memory), [&](int64_t i, uint32_t r) { to[i] = static_cast<Out>(scale(r)); },
        roots, part);
  } else {
    inverse_part(
        v, reinterpret_cast<uint32_t*>(memory), [&](int64_t i, uint32_t r) { to[i] = static_cast<Out>(r); }, roots,
        part);
  }
}

constexpr int kTailThreads = 256;

// The last kSplit stages of inverse transforms in place, 1/n and rounding: one column of 2^kSplit values a thread. Rows
// over blockIdx.x, 2^kPartLog / kTailThreads blocks each; limbs over blockIdx.y.
template <int kSplit, typename Word>
__global__ void __launch_bounds__(kTailThreads)
    ntt_tail_kernel(const Rows rows, const Rounding rounding,
                    const int32_t* __restrict__ tables,  // [L, 4, n]
                    const int64_t* __restrict__ moduli,  // [L]
                    Word* __restrict__ y) {              // rows as `rows` says; loose on entry
  constexpr int kParts = 1 << kSplit;
  constexpr int kSize = 1 << kPartLog;
  constexpr unsigned kBlocks = kSize / kTailThreads;
  const int64_t limb = blockIdx.y;
  const uint32_t q = static_cast<uint32_t>(__ldg(moduli + limb));
  const Roots roots = inverse_roots(tables + limb * 4 * kParts * kSize, kParts * kSize, q);
  const Scale scale(roots, rounding_addend(rounding, q));
  const int64_t column = static_cast<int64_t>(blockIdx.x % kBlocks) * kTailThreads + threadIdx.x;
  Word* const at = y + rows.at(limb, blockIdx.x / kBlocks) + column;
  uint32_t v[kParts];
#pragma unroll
  for (int i = 0; i < kParts; ++i) v[i] = static_cast<uint32_t>(at[i * kSize]);
  inverse_stages<kSplit>(v, roots, 1);
#pragma unroll
  for (int i = 0; i < kParts; ++i) at[i * kSize] = static_cast<Word>(scale(v[i]));
}

}  // namespace

template <typename Word>
cudaError_t launch_inverse_tail(int64_t n, int64_t limbs, int64_t count, Rows rows, Rounding rounding,
                                const int32_t* tables, const int64_t* moduli, Word* y, cudaStream_t stream) {
  const PartLaunch part(log2_exact(n));
  if (part.split == 0) return cudaSuccess;
  const int64_t blocks = count * ((1 << kPartLog) / kTailThreads);
  if (blocks > kMaxGridX || limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape grid{dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(limbs)), dim3(kTailThreads)};
  if (part.split == 1) {
    return launch(MCFHE_KERNEL(ntt_tail_kernel<1, Word>), grid, stream, rows, rounding, tables, moduli, y);
  }
  return launch(MCFHE_KERNEL(ntt_tail_kernel<2, Word>), grid, stream, rows, rounding, tables, moduli, y);
}

template <typename Out>
cudaError_t launch_inverse(int64_t n, int64_t limbs, int64_t count, Rows in, Rows out, Rounding rounding,
                           const int64_t* x, const int32_t* tables, const int64_t* moduli, Out* y,
                           cudaStream_t stream) {
  const PartLaunch part(log2_exact(n));
  const int64_t blocks = count << part.split;
  if (blocks > kMaxGridX || limbs > kMaxGridYZ) return cudaErrorInvalidConfiguration;
  const LaunchShape grid = part.shape(blocks, limbs);
  const cudaError_t error = part.dispatch([&]<class S>() {
    return launch(MCFHE_KERNEL(ntt_inverse_kernel<S, Out>), grid, stream, part.log_size, in, out, rounding, x, tables,
                  moduli, y);
  });
  if (error != cudaSuccess) return error;
  return launch_inverse_tail(n, limbs, count, out, rounding, tables, moduli, y, stream);
}

template cudaError_t launch_inverse(int64_t, int64_t, int64_t, Rows, Rows, Rounding, const int64_t*, const int32_t*,
                                    const int64_t*, int64_t*, cudaStream_t);
template cudaError_t launch_inverse(int64_t, int64_t, int64_t, Rows, Rows, Rounding, const int64_t*, const int32_t*,
                                    const int64_t*, uint32_t*, cudaStream_t);
template cudaError_t launch_inverse_tail(int64_t, int64_t, int64_t, Rows, Rounding, const int32_t*, const int64_t*,
                                         uint32_t*, cudaStream_t);

}  // namespace mcfhe::cuda
