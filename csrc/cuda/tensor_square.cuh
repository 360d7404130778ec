// What tensor_square and its form with a pool share: tables of channels, and how rows of n entries lie on a grid.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda_launch.h"
#include "launch.cuh"

namespace mcfhe::cuda {

constexpr int kSquareThreads = 256;

// The row of a channel in a table [L, 1 or C, width]: null if absent.
struct ChannelTable {
  const int64_t* table;
  int64_t channel_stride;  // 0: one row for all channels
  int64_t width;

  __device__ __forceinline__ const int64_t* row(int64_t l, int64_t c, int64_t channels) const {
    return table + (channel_stride == 0 ? l : l * channels + c) * width;
  }
};

// Entries of a row over threadIdx.x and blockIdx.x, `width` of them a thread; rows over threadIdx.y and blockIdx.y;
// limbs over blockIdx.z. An empty grid where the device has none so wide.
inline LaunchShape row_shape(int64_t entries, int width, int64_t rows, int64_t limbs) {
  const int64_t units = entries / width;
  int64_t block_x = 1;
  while (block_x < kSquareThreads && block_x < units) block_x *= 2;
  const int64_t block_y = kSquareThreads / block_x;
  const int64_t grid_x = ceil_div(units, block_x);
  if (grid_x > kMaxGridX) return {dim3(0), dim3(0)};
  const int64_t grid_y = std::min(ceil_div(rows, block_y), kMaxGridYZ);
  return {dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y),
               static_cast<unsigned>(std::min(limbs, kMaxGridYZ))),
          dim3(static_cast<unsigned>(block_x), static_cast<unsigned>(block_y))};
}

}  // namespace mcfhe::cuda
