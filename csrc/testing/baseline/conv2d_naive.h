// The convolution one would write first: the benchmark baseline, never in the package.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/params.h"

namespace mcfhe::baseline {

// One output a thread, a run-time % after every product; no bias, no polynomial, any weights below 2^31.
cudaError_t launch_conv2d_naive(const ConvParams& p,
                                const int64_t* x,       // [L, C, H, W, S]
                                const int64_t* weight,  // [O, C / groups, KH, KW]
                                const int64_t* moduli,  // [L]
                                int64_t* y,             // [L, O, OH, OW, S]
                                cudaStream_t stream);

}  // namespace mcfhe::baseline
