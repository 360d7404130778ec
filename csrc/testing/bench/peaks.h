// The best multiply-add rate of each arithmetic unit: what a kernel's floor is made of. Never in the package.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mcfhe::bench {

enum class Unit : int32_t {
  kDouble,  // DFMA
  kInt64,   // IMAD.WIDE: 32 x 32 + 64 bits
  kInt8,    // mma.sync m16n8k32, int8 x uint8 + int32
};

// Threads of a launch over `blocks` blocks.
int64_t peak_threads(int64_t blocks);

// Multiply-adds of one launch.
int64_t peak_products(Unit unit, int64_t blocks, int64_t rounds);

cudaError_t launch_peak(Unit unit, int64_t blocks, int64_t rounds,
                        const int32_t* seed,  // [threads, 2], random
                        double* out,          // [threads]
                        cudaStream_t stream);

}  // namespace mcfhe::bench
