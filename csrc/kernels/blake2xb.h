// What defines the BLAKE2Xb stream of a seed, for the CPU and the CUDA kernel of expand_uniform. Torch-free.
//
// BLAKE2Xb (J.-P. Aumasson et al., BLAKE2X, 2016): a root hash of the input, keyed with the seed, then one independent
// BLAKE2b hash (RFC 7693) of the root, a node, for every 64 bytes of output. SEAL's stream of a seed
// (native/src/seal/randomgen.cpp) is the concatenation of 4,096-byte outputs for the inputs 0, 1, 2, ..
#pragma once

#include <cstdint>

namespace mcfhe::blake2 {

constexpr int kRounds = 12;
constexpr int kStateWords = 8;  // of the chaining value, a seed, a root and a node
constexpr int kBlockBytes = 128;
constexpr int64_t kOutputBytes = 4096;
constexpr int64_t kOutputWords = kOutputBytes / 8;
constexpr int64_t kNodes = kOutputWords / kStateWords;  // of an output

constexpr uint64_t kIv[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                             0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
constexpr uint8_t kSigma[kRounds][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

// The four words that a column or diagonal step g of 8 mixes: columns, then diagonals.
constexpr uint8_t kMix[8][4] = {{0, 4, 8, 12},  {1, 5, 9, 13},  {2, 6, 10, 14}, {3, 7, 11, 15},
                                {0, 5, 10, 15}, {1, 6, 11, 12}, {2, 7, 8, 13},  {3, 4, 9, 14}};

// The parameter block's first three words; the others are 0. The second word of a node adds its number, node_offset.
constexpr uint64_t kRootFirst = 64 | 64 << 8 | 1 << 16 | 1 << 24;        // digest, key, fanout 1, depth 1
constexpr uint64_t kNodeFirst = 64 | uint64_t{64} << 32;                 // digest, leaf length
constexpr uint64_t kSecond = static_cast<uint64_t>(kOutputBytes) << 32;  // output length
constexpr uint64_t kNodeThird = 64 << 8;                                 // inner length

}  // namespace mcfhe::blake2
