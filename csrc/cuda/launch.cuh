// Kernel launches as a function call, so that the same source builds for the GPU and for the SIMT harness.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <tuple>

#if defined(MCFHE_SIMT)
#include "simt.h"
#endif

// launch(MCFHE_KERNEL(kernel<A, B>), ...): the kernel and its name, which the harness reports.
#define MCFHE_KERNEL(...) #__VA_ARGS__, __VA_ARGS__

// Declares `name`, the block's dynamic shared memory, aligned to 16 bytes.
#if defined(MCFHE_SIMT)
#define MCFHE_DYNAMIC_SHARED(name) unsigned char* const name = ::simt::dynamic_shared()
#else
#define MCFHE_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace mcfhe::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
};

template <typename... Params, typename... Args>
cudaError_t launch([[maybe_unused]] const char* name, void (*kernel)(Params...), const LaunchShape& shape,
                   [[maybe_unused]] cudaStream_t stream, const Args&... args) {
#if defined(MCFHE_SIMT)
  return simt::run(name, shape.grid, shape.block, shape.shared_bytes, [=] { kernel(Params(args)...); });
#else
  std::tuple<Params...> values(args...);
  return std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), shape.grid, shape.block, pointers,
                                shape.shared_bytes, stream);
      },
      values);
#endif
}

// Grid dimensions: x up to 2^31 - 1, y and z up to 65535.
inline constexpr int64_t kMaxGridX = (int64_t{1} << 31) - 1;
inline constexpr int64_t kMaxGridYZ = 65535;

template <typename T>
constexpr T ceil_div(T n, T d) {
  return (n + d - 1) / d;
}

}  // namespace mcfhe::cuda
