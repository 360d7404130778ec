// The hashes of a BLAKE2Xb stream (kernels/blake2xb.h), one a thread, in registers.
//
// The rounds are unrolled with the message schedule as constants, so that a message word is a register whatever its
// place in a round, and the words that are always 0 cost nothing.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/blake2xb.h"

namespace mcfhe::cuda {

// A word of the initial value: device code takes constants from arrays at compile time only.
template <int kWord>
inline constexpr uint64_t kIv = blake2::kIv[kWord];

__device__ __forceinline__ uint64_t rotate_right(uint64_t x, int bits) { return (x >> bits) | (x << (64 - bits)); }

__device__ __forceinline__ void blake_mix(uint64_t& a, uint64_t& b, uint64_t& c, uint64_t& d, uint64_t x, uint64_t y) {
  a = a + b + x;
  d = rotate_right(d ^ a, 32);
  c = c + d;
  b = rotate_right(b ^ c, 24);
  a = a + b + y;
  d = rotate_right(d ^ a, 16);
  c = c + d;
  b = rotate_right(b ^ c, 63);
}

// Step g of a round, then those behind it.
template <int kRound, int kStep>
__device__ __forceinline__ void blake_steps(uint64_t (&v)[16], const uint64_t (&message)[8]) {
  if constexpr (kRound < blake2::kRounds) {
    constexpr int a = blake2::kMix[kStep][0];
    constexpr int b = blake2::kMix[kStep][1];
    constexpr int c = blake2::kMix[kStep][2];
    constexpr int d = blake2::kMix[kStep][3];
    constexpr int x = blake2::kSigma[kRound][2 * kStep];
    constexpr int y = blake2::kSigma[kRound][2 * kStep + 1];
    blake_mix(v[a], v[b], v[c], v[d], x < 8 ? message[x % 8] : 0, y < 8 ? message[y % 8] : 0);
    blake_steps<kRound + (kStep + 1) / 8, (kStep + 1) % 8>(v, message);
  }
}

// A block of which the first half is `message` and the other half 0; `bytes` counts all input so far.
__device__ __forceinline__ void blake_compress(uint64_t (&h)[8], const uint64_t (&message)[8], uint64_t bytes,
                                               bool last) {
  uint64_t v[16];
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] = h[i];
  v[8] = kIv<0>;
  v[9] = kIv<1>;
  v[10] = kIv<2>;
  v[11] = kIv<3>;
  v[12] = kIv<4> ^ bytes;
  v[13] = kIv<5>;
  v[14] = last ? ~kIv<6> : kIv<6>;
  v[15] = kIv<7>;
  blake_steps<0, 0>(v, message);
#pragma unroll
  for (int i = 0; i < 8; ++i) h[i] ^= v[i] ^ v[i + 8];
}

__device__ __forceinline__ void blake_start(uint64_t (&h)[8], uint64_t first, uint64_t second, uint64_t third) {
  h[0] = kIv<0> ^ first;
  h[1] = kIv<1> ^ second;
  h[2] = kIv<2> ^ third;
  h[3] = kIv<3>;
  h[4] = kIv<4>;
  h[5] = kIv<5>;
  h[6] = kIv<6>;
  h[7] = kIv<7>;
}

// The root of output `counter`: the hash of the counter's eight bytes under the seed, which fills a block of its own.
__device__ __forceinline__ void blake_root(const uint64_t* seed, uint64_t counter, uint64_t (&root)[8]) {
  blake_start(root, blake2::kRootFirst, blake2::kSecond, 0);
  uint64_t message[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) message[i] = __ldg(seed + i);
  blake_compress(root, message, blake2::kBlockBytes, false);
#pragma unroll
  for (int i = 0; i < 8; ++i) message[i] = i == 0 ? counter : 0;
  blake_compress(root, message, blake2::kBlockBytes + sizeof(counter), true);
}

// Words 8 node .. 8 node + 7 of the output with this root.
__device__ __forceinline__ void blake_node(const uint64_t (&root)[8], int node, uint64_t (&words)[8]) {
  blake_start(words, blake2::kNodeFirst, blake2::kSecond + static_cast<uint64_t>(node), blake2::kNodeThird);
  blake_compress(words, root, sizeof(root), true);
}

}  // namespace mcfhe::cuda
