// int8 tensor cores: one warp multiplies a 16 x 32 matrix of int8 by a 32 x 8 matrix of uint8.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#if defined(MCFHE_SIMT)
#include "simt.h"
#endif

namespace mcfhe::cuda {

// sum += a * b, exact while |sum| < 2^31. Every lane of the warp calls it. With g = lane / 4 and t = lane % 4, a lane
// holds, four bytes to a word, lowest index in the lowest byte,
//   a[r]: row g + 8 * (r % 2), columns 4 * t + 16 * (r / 2) and the next three;
//   b[r]: column g, rows 4 * t + 16 * r and the next three;
//   sum[r]: row g + 8 * (r / 2), column 2 * t + r % 2.
__device__ __forceinline__ void mma_s8_u8(int32_t (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(MCFHE_SIMT)
  struct Lane {
    uint32_t a[4];
    uint32_t b[2];
  };
  const Lane mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  Lane all[32];
  simt::warp_gather(&mine, all, sizeof(Lane), __FILE__, __LINE__);
  const int lane = simt::lane_index();
  for (int r = 0; r < 4; ++r) {
    const int row = lane / 4 + 8 * (r / 2);
    const int column = 2 * (lane % 4) + r % 2;
    for (int k = 0; k < 32; ++k) {
      const uint32_t aw = all[row % 8 * 4 + k % 16 / 4].a[row / 8 + k / 16 * 2];
      const uint32_t bw = all[column * 4 + k % 16 / 4].b[k / 16];
      sum[r] += static_cast<int8_t>(aw >> k % 4 * 8 & 0xff) * static_cast<int32_t>(bw >> k % 4 * 8 & 0xff);
    }
  }
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

// Rows of four words -> columns: out[i] holds byte i of each word, that of word j in byte j.
__device__ __forceinline__ void transpose_bytes(const uint32_t (&word)[4], uint32_t (&out)[4]) {
  const uint32_t low01 = __byte_perm(word[0], word[1], 0x5140);  // bytes 0 of 0, 1; bytes 1 of 0, 1
  const uint32_t low23 = __byte_perm(word[2], word[3], 0x5140);
  const uint32_t high01 = __byte_perm(word[0], word[1], 0x7362);  // bytes 2 of 0, 1; bytes 3 of 0, 1
  const uint32_t high23 = __byte_perm(word[2], word[3], 0x7362);
  out[0] = __byte_perm(low01, low23, 0x5410);
  out[1] = __byte_perm(low01, low23, 0x7632);
  out[2] = __byte_perm(high01, high23, 0x5410);
  out[3] = __byte_perm(high01, high23, 0x7632);
}

}  // namespace mcfhe::cuda
