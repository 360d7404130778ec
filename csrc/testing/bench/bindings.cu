// C symbols for ctypes: the package's launchers with every option, the naive kernel, the peaks. Never in the package.
// Each returns a cudaError_t; pointers are device memory, shapes as in kernels/cuda_launch.h.
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda_launch.h"
#include "peaks.h"
#include "testing/baseline/conv2d_naive.h"

#define MCFHE_EXPORT extern "C" __attribute__((visibility("default")))

using mcfhe::ConvParams;
using mcfhe::PoolParams;
using mcfhe::bench::Unit;
using mcfhe::cuda::Arithmetic;
using mcfhe::cuda::ConvTile;

// arithmetic and tile: the values of Arithmetic and ConvTile, 0 for the package's own choice.
MCFHE_EXPORT int mcfhe_bench_conv2d(const ConvParams* p, int64_t max_abs, int64_t max_sum, int arithmetic, int tile,
                                    const int64_t* x, const int64_t* weight, const int64_t* bias, const int64_t* poly,
                                    const int64_t* moduli, int64_t* y, void* stream) {
  return mcfhe::cuda::launch_conv2d(*p, {max_abs, max_sum},
                                    {static_cast<Arithmetic>(arithmetic), static_cast<ConvTile>(tile)}, x, weight, bias,
                                    poly, moduli, y, static_cast<cudaStream_t>(stream));
}

// cudaErrorNotSupported where the pool does not go into the convolution's launch.
MCFHE_EXPORT int mcfhe_bench_conv2d_pool(const ConvParams* p, int64_t pool_h, int64_t pool_w, int64_t max_abs,
                                         int64_t max_sum, int arithmetic, int tile, const int64_t* x,
                                         const int64_t* weight, const int64_t* bias, const int64_t* poly,
                                         const int64_t* factor, const int64_t* moduli, int64_t* y, void* stream) {
  return mcfhe::cuda::launch_conv2d_pool(*p, {pool_h, pool_w}, {max_abs, max_sum},
                                         {static_cast<Arithmetic>(arithmetic), static_cast<ConvTile>(tile)}, x, weight,
                                         bias, poly, factor, moduli, y, static_cast<cudaStream_t>(stream));
}

MCFHE_EXPORT int mcfhe_bench_sum_pool2d(const PoolParams* p, const int64_t* x, const int64_t* factor,
                                        const int64_t* moduli, int64_t* y, void* stream) {
  return mcfhe::cuda::launch_sum_pool2d(*p, x, factor, moduli, y, static_cast<cudaStream_t>(stream));
}

MCFHE_EXPORT int mcfhe_bench_linear(const ConvParams* p, int64_t max_abs, int64_t max_sum, int arithmetic, int tile,
                                    const int64_t* x, const int64_t* weight, const int64_t* bias, const int64_t* poly,
                                    const int64_t* moduli, int64_t* y, void* stream) {
  return mcfhe::cuda::launch_linear(*p, {max_abs, max_sum},
                                    {static_cast<Arithmetic>(arithmetic), static_cast<ConvTile>(tile)}, x, weight, bias,
                                    poly, moduli, y, static_cast<cudaStream_t>(stream));
}

MCFHE_EXPORT int mcfhe_bench_conv2d_naive(const ConvParams* p, const int64_t* x, const int64_t* weight,
                                          const int64_t* moduli, int64_t* y, void* stream) {
  return mcfhe::baseline::launch_conv2d_naive(*p, x, weight, moduli, y, static_cast<cudaStream_t>(stream));
}

// unit: the values of mcfhe::bench::Unit.
MCFHE_EXPORT int mcfhe_bench_peak(int unit, int64_t blocks, int64_t rounds, const int32_t* seed, double* out,
                                  void* stream) {
  return mcfhe::bench::launch_peak(static_cast<Unit>(unit), blocks, rounds, seed, out,
                                   static_cast<cudaStream_t>(stream));
}

MCFHE_EXPORT int64_t mcfhe_bench_peak_products(int unit, int64_t blocks, int64_t rounds) {
  return mcfhe::bench::peak_products(static_cast<Unit>(unit), blocks, rounds);
}

MCFHE_EXPORT int64_t mcfhe_bench_peak_threads(int64_t blocks) { return mcfhe::bench::peak_threads(blocks); }

MCFHE_EXPORT const char* mcfhe_bench_error(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
