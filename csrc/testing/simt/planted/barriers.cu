// Planted mistakes with barriers. Each kernel is right when bug is false.
#include <cuda_runtime.h>

#include "planted.h"

namespace planted {
namespace {

// Reads what the neighbour wrote.
__global__ void missing_barrier_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  if (!bug) __syncthreads();
  y[i] = tile[(i + 1) % kThreads];
}

// Refills the tile while others may still read it.
__global__ void missing_second_barrier_kernel(bool bug, const int64_t* x, int64_t* y) {
  MCFHE_DYNAMIC_SHARED(shared);
  int64_t* const tile = reinterpret_cast<int64_t*>(shared);
  const int i = static_cast<int>(threadIdx.x);
  int64_t sum = 0;
  for (int round = 0; round < 2; ++round) {
    if (round > 0 && !bug) __syncthreads();
    tile[i] = x[i] + round;
    __syncthreads();
    sum += tile[(i + 1) % kThreads];
  }
  y[i] = sum;
}

// Lanes of one warp exchange through shared memory.
__global__ void missing_warp_barrier_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  if (!bug) __syncwarp();
  y[i] = tile[i ^ 1];
}

// Lanes take turns at reading and writing the same words.
__global__ void missing_warp_barrier_in_place_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  for (int distance = 0; distance < 3; ++distance) {
    if (!bug) __syncwarp();
    tile[i ^ distance] += distance;
  }
  __syncthreads();
  y[i] = tile[i];
}

// Words cross between warps in every round, but before a refill only the lanes of a warp wait for each other.
__global__ void warp_barrier_for_block_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  int64_t sum = 0;
  for (int round = 0; round < 2; ++round) {
    if (bug) {
      __syncwarp();
    } else {
      __syncthreads();
    }
    tile[i ^ 32] = x[i] + round;
    __syncthreads();
    sum += tile[i];
  }
  y[i] = sum;
}

// Half of the block leaves before the barrier.
__global__ void divergent_barrier_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  if (bug && i >= kThreads / 2) return;
  __syncthreads();
  y[i] = tile[i];
}

// The two halves of the block wait at two different barriers.
__global__ void mismatched_barriers_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t tile[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  tile[i] = x[i];
  if (bug && i < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[i] = tile[i];
}

// Some lanes leave before the shuffle that counts on them.
__global__ void divergent_shuffle_kernel(bool bug, const int64_t* x, int64_t* y) {
  const int i = static_cast<int>(threadIdx.x);
  if (bug && i % 2 == 1) return;
  y[i] = __shfl_xor_sync(mcfhe::cuda::kFullWarp, x[i], 1);
}

// Every block adds to the same entry.
__global__ void missing_atomic_kernel(bool bug, const int64_t* x, int64_t* y) {
  unsigned long long* const total = reinterpret_cast<unsigned long long*>(y);
  if (threadIdx.x != 0) return;
  if (bug) {
    *total += static_cast<unsigned long long>(x[0]);
  } else {
    atomicAdd(total, static_cast<unsigned long long>(x[0]));
  }
}

// Counts on shared memory to start at zero.
__global__ void uninitialised_shared_kernel(bool bug, const int64_t* x, int64_t* y) {
  __shared__ int64_t sum[kThreads];
  const int i = static_cast<int>(threadIdx.x);
  if (!bug) sum[i] = 0;
  sum[i] += x[i];
  y[i] = sum[i];
}

PLANTED(missing_barrier, 1);
PLANTED(missing_second_barrier, 1);
PLANTED(missing_warp_barrier, 1);
PLANTED(missing_warp_barrier_in_place, 1);
PLANTED(warp_barrier_for_block, 1);
PLANTED(divergent_barrier, 1);
PLANTED(mismatched_barriers, 1);
PLANTED(divergent_shuffle, 1);
PLANTED(missing_atomic, 2);
PLANTED(uninitialised_shared, 1);

}  // namespace
}  // namespace planted
