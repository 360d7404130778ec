// What a .cu source expects of the CUDA compiler, for the SIMT harness: keywords, built-in variables, intrinsics.
#pragma once

#include "cuda_runtime_api.h"
#include "simt.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// Blocks run one after another, so one copy serves all; the race build checks that no block reads another's leavings.
#define __shared__ static

#define threadIdx (::simt::thread_index())
#define blockIdx (::simt::block_index())
#define blockDim (::simt::block_size())
#define gridDim (::simt::grid_size())

#define __syncthreads() ::simt::block_barrier(__FILE__, __LINE__)
#define __syncwarp() ::simt::warp_barrier(__FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, distance) ::simt::shuffle_xor((mask), (value), (distance), __FILE__, __LINE__)

struct alignas(16) longlong2 {
  long long x, y;
};

inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <typename T>
T __ldg(const T* pointer) {
  return *pointer;
}

inline uint64_t __umul64hi(uint64_t x, uint64_t y) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(x) * y) >> 64);
}

inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }

inline int __double2loint(double x) { return static_cast<int>(std::bit_cast<uint64_t>(x)); }

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return result;
}

inline unsigned long long atomicAdd(unsigned long long* pointer, unsigned long long value) {
  ::simt::atomic_access(pointer, sizeof(*pointer));
  return ::simt::plain_exchange(pointer, ::simt::plain_load(pointer) + value);
}

inline unsigned long long atomicMax(unsigned long long* pointer, unsigned long long value) {
  ::simt::atomic_access(pointer, sizeof(*pointer));
  const unsigned long long old = ::simt::plain_load(pointer);
  return ::simt::plain_exchange(pointer, old > value ? old : value);
}
