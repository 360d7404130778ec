// The constants of a division by a modulus, once a call.
#include "mod_down.cuh"

#include "launch.cuh"

namespace mcfhe::cuda {
namespace {

constexpr int kThreads = 64;

__global__ void __launch_bounds__(kThreads)
    division_constants_kernel(const int64_t limbs, const int64_t last,
                              const int64_t* __restrict__ moduli,           // [limbs]
                              DivisionConstants* __restrict__ constants) {  // [limbs]
  const int64_t limb = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (limb >= limbs) return;
  const uint32_t p = static_cast<uint32_t>(__ldg(moduli + last));
  const uint32_t q = static_cast<uint32_t>(__ldg(moduli + limb));
  const uint32_t inverse = limb == last ? 0 : inverse_word(p % q, q);
  constants[limb] = {make_modulus(q).mu, q, shoup_quotient(1, q), inverse, shoup_quotient(inverse, q), q - (p >> 1) % q,
                     inverse_of_word(q)};
}

}  // namespace

cudaError_t launch_division_constants(int64_t limbs, int64_t last, const int64_t* moduli, DivisionConstants* constants,
                                      cudaStream_t stream) {
  const LaunchShape grid{dim3(static_cast<unsigned>(ceil_div<int64_t>(limbs, kThreads))), dim3(kThreads)};
  return launch(MCFHE_KERNEL(division_constants_kernel), grid, stream, limbs, last, moduli, constants);
}

}  // namespace mcfhe::cuda
