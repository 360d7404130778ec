// Planted mistakes with indices. Each kernel is right when bug is false.
#include <cuda_runtime.h>

#include "planted.h"

namespace planted {
namespace {

// One past the last block whose threads an unsigned, or an int, can still number.
constexpr unsigned kBlocksUnsigned = (1u << 26) + 1;
constexpr unsigned kBlocksInt = (1u << 25) + 1;

__global__ void global_read_out_of_bounds_kernel(bool bug, const int64_t* x, int64_t* y) {
  const int i = static_cast<int>(threadIdx.x);
  y[i] = x[i + (bug ? 1 : 0)];
}

__global__ void global_write_out_of_bounds_kernel(bool bug, const int64_t* x, int64_t* y) {
  const int i = static_cast<int>(threadIdx.x);
  y[i + (bug ? 1 : 0)] = x[i];
}

__global__ void shared_read_out_of_bounds_kernel(bool bug, const int64_t* x, int64_t* y) {
  MCFHE_DYNAMIC_SHARED(shared);
  int64_t* const tile = reinterpret_cast<int64_t*>(shared);
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  __syncthreads();
  y[i] = bug ? tile[i + 1] : tile[i];
}

__global__ void static_shared_out_of_bounds_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  __syncthreads();
  const int64_t* const from = tile;
  y[i] = from[bug ? i + 1 : i];
}

// Sums of windows of three, the last of which has too few entries left.
__global__ void incomplete_window_kernel(bool bug, const int64_t* x, int64_t* y) {
  constexpr int kWindow = 3;
  const int windows = bug ? (kThreads + kWindow - 1) / kWindow : kThreads / kWindow;
  const int i = static_cast<int>(threadIdx.x);
  int64_t sum = 0;
  for (int k = 0; k < kWindow && i < windows; ++k) sum += x[i * kWindow + k];
  y[i] = sum;
}

__global__ void misaligned_pair_kernel(bool bug, const int64_t* x, int64_t* y) {
  if (threadIdx.x >= kThreads / 2) return;
  const int i = static_cast<int>(threadIdx.x);
  const longlong2 pair = *reinterpret_cast<const longlong2*>(x + (bug && i == 0 ? 1 : 2 * i));
  y[2 * i] = pair.x;
  y[2 * i + 1] = pair.y;
}

// The first and the last block of a very large grid run; each thread notes its number.
__global__ void index_overflow_unsigned_kernel(bool bug, const int64_t* x, int64_t* y) {
  const int64_t index = bug ? int64_t{blockIdx.x * blockDim.x + threadIdx.x}
                            : static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int i = static_cast<int>(threadIdx.x);
  if (index >= 0 && blockIdx.x == gridDim.x - 1) y[i] = x[0] + index;
}

__global__ void index_overflow_int_kernel(bool bug, const int64_t* x, int64_t* y) {
  int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (bug) {
    const int narrow = blockIdx.x * blockDim.x + threadIdx.x;
    index = narrow;
  }
  const int i = static_cast<int>(threadIdx.x);
  if (index >= 0 && blockIdx.x == gridDim.x - 1) y[i] = x[0] + index;
}

// The product of two sizes that each fit an int.
__global__ void offset_overflow_kernel(bool bug, const int64_t* x, int64_t* y) {
  const int plane = 1 << 20;
  const int i = static_cast<int>(threadIdx.x);
  const int channel = i * 1024;
  const int64_t offset = bug ? channel * plane : static_cast<int64_t>(channel) * plane;
  y[i] = x[0] + offset;
}

PLANTED(global_read_out_of_bounds, 1);
PLANTED(global_write_out_of_bounds, 1);
PLANTED(shared_read_out_of_bounds, 1);
PLANTED(static_shared_out_of_bounds, 1);
PLANTED(incomplete_window, 1);
PLANTED(misaligned_pair, 1);
PLANTED(index_overflow_unsigned, kBlocksUnsigned);
PLANTED(index_overflow_int, kBlocksInt);
PLANTED(offset_overflow, 1);

}  // namespace
}  // namespace planted
