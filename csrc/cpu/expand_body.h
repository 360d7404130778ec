// Uniform residues from seeds, as SEAL expands the second component of a seeded ciphertext: BLAKE2Xb over a counter, 64
// bits a residue. The seeds are public (they travel in the clear), so nothing here needs to run in constant time.
//
// BLAKE2Xb (J.-P. Aumasson et al., BLAKE2X, 2016): a root hash of the input, then one independent BLAKE2b hash of the
// root for every 64 bytes of output. Independent hashes are computed eight at a time, one in each lane of a vector.
// SEAL's stream (native/src/seal/randomgen.cpp) is the concatenation of 4,096-byte outputs for the inputs 0, 1, 2, ..

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between functions of this file alone

constexpr int64_t kHashLanes = 8;
constexpr int64_t kOutputBytes = 4096;
constexpr int64_t kOutputWords = kOutputBytes / 8;
constexpr int64_t kHashWords = 8;
typedef uint64_t HashLanes __attribute__((vector_size(8 * kHashLanes)));

constexpr uint64_t kBlakeIv[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                  0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
constexpr uint8_t kSigma[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

// First and second word of the parameter block; the third holds inner length, the others are 0.
constexpr uint64_t kRootFirst = 64 | 64 << 8 | 1 << 16 | 1 << 24;  // digest, key, fanout 1, depth 1
constexpr uint64_t kNodeFirst = 64 | uint64_t{64} << 32;           // digest, leaf length
constexpr uint64_t kOutputLength = static_cast<uint64_t>(kOutputBytes) << 32;
constexpr uint64_t kNodeThird = 64 << 8;  // inner length

inline HashLanes broadcast(uint64_t v) { return HashLanes{v, v, v, v, v, v, v, v}; }
inline HashLanes rotated(HashLanes v, int bits) { return (v >> bits) | (v << (64 - bits)); }

inline void blake_mix(HashLanes v[16], int a, int b, int c, int d, HashLanes x, HashLanes y) {
  v[a] = v[a] + v[b] + x;
  v[d] = rotated(v[d] ^ v[a], 32);
  v[c] = v[c] + v[d];
  v[b] = rotated(v[b] ^ v[c], 24);
  v[a] = v[a] + v[b] + y;
  v[d] = rotated(v[d] ^ v[a], 16);
  v[c] = v[c] + v[d];
  v[b] = rotated(v[b] ^ v[c], 63);
}

// The first `words` of 16 message words are given, the others 0; `bytes` counts all input so far.
template <int words>
inline void blake_compress(HashLanes h[8], const HashLanes* message, uint64_t bytes, bool last) {
  const HashLanes zero = broadcast(0);
  HashLanes v[16];
  for (int i = 0; i < 8; ++i) {
    v[i] = h[i];
    v[i + 8] = broadcast(kBlakeIv[i]);
  }
  v[12] ^= broadcast(bytes);
  if (last) v[14] = ~v[14];
#pragma GCC unroll 12
  for (int round = 0; round < 12; ++round) {
    const auto word = [&](int i) { return kSigma[round][i] < words ? message[kSigma[round][i]] : zero; };
    blake_mix(v, 0, 4, 8, 12, word(0), word(1));
    blake_mix(v, 1, 5, 9, 13, word(2), word(3));
    blake_mix(v, 2, 6, 10, 14, word(4), word(5));
    blake_mix(v, 3, 7, 11, 15, word(6), word(7));
    blake_mix(v, 0, 5, 10, 15, word(8), word(9));
    blake_mix(v, 1, 6, 11, 12, word(10), word(11));
    blake_mix(v, 2, 7, 8, 13, word(12), word(13));
    blake_mix(v, 3, 4, 9, 14, word(14), word(15));
  }
  for (int i = 0; i < 8; ++i) h[i] ^= v[i] ^ v[i + 8];
}

// The roots of the outputs counter, .., counter + 7.
inline void blake_roots(const uint64_t* seed, uint64_t counter, HashLanes root[8]) {
  for (int i = 0; i < 8; ++i) root[i] = broadcast(kBlakeIv[i]);
  root[0] ^= broadcast(kRootFirst);
  root[1] ^= broadcast(kOutputLength);
  HashLanes key[8];
  for (int i = 0; i < 8; ++i) key[i] = broadcast(seed[i]);
  blake_compress<8>(root, key, 128, false);
  HashLanes input = broadcast(counter);
  for (int lane = 0; lane < kHashLanes; ++lane) input[lane] += static_cast<uint64_t>(lane);
  blake_compress<1>(root, &input, 136, true);
}

// One 4,096-byte output from its root.
inline void blake_output(const uint64_t* root, uint64_t* out) {
  HashLanes message[8];
  for (int i = 0; i < 8; ++i) message[i] = broadcast(root[i]);
  for (int64_t node = 0; node < kOutputWords / kHashWords; node += kHashLanes) {
    HashLanes h[8];
    for (int i = 0; i < 8; ++i) h[i] = broadcast(kBlakeIv[i]);
    h[0] ^= broadcast(kNodeFirst);
    HashLanes second = broadcast(kOutputLength + static_cast<uint64_t>(node));
    for (int lane = 0; lane < kHashLanes; ++lane) second[lane] += static_cast<uint64_t>(lane);
    h[1] ^= second;
    h[2] ^= broadcast(kNodeThird);
    blake_compress<8>(h, message, 64, true);
    for (int64_t lane = 0; lane < kHashLanes; ++lane) {
      for (int64_t i = 0; i < kHashWords; ++i) out[(node + lane) * kHashWords + i] = h[i][lane];
    }
  }
}

// The stream of one seed, a word at a time.
struct SeedStream {
  const uint64_t* seed;
  uint64_t counter = 0;
  int64_t at = kHashLanes * kOutputWords;
  uint64_t words[kHashLanes * kOutputWords];

  uint64_t next() {
    if (at == kHashLanes * kOutputWords) refill();
    return words[at++];
  }

  void refill() {
    HashLanes roots[8];
    blake_roots(seed, counter, roots);
    for (int64_t lane = 0; lane < kHashLanes; ++lane) {
      uint64_t root[8];
      for (int i = 0; i < 8; ++i) root[i] = roots[i][lane];
      blake_output(root, words + lane * kOutputWords);
    }
    counter += kHashLanes;
    at = 0;
  }
};

// floor(2^64 / q) - 0 or 1, and the first of the words that SEAL draws again so that none is favoured.
struct WordReduction {
  uint64_t q, quotient, limit;
  explicit WordReduction(int64_t modulus)
      : q(static_cast<uint64_t>(modulus)), quotient(~uint64_t{0} / q), limit(~uint64_t{0} - ~uint64_t{0} % q - 1) {}

  int32_t operator()(uint64_t word) const {
    const uint64_t high = static_cast<uint64_t>((static_cast<unsigned __int128>(word) * quotient) >> 64);
    uint64_t r = word - high * q;
    while (r >= q) r -= q;
    return static_cast<int32_t>(r);
  }
};

// Draws all words first, then, in the same order, those anew that were refused: SEAL's sample_poly_uniform.
void expand_uniform_task(const ExpandJob& job, int64_t task) {
  SeedStream stream;
  stream.seed = job.seeds + task * kHashWords;
  int64_t refused = 0;
  for (int64_t limb = 0; limb < job.limbs; ++limb) {
    const WordReduction reduce(job.moduli[limb]);
    int32_t* const y = job.y + (limb * job.count + task) * job.n;
    for (int64_t i = 0; i < job.n; ++i) {
      const uint64_t word = stream.next();
      const bool good = word < reduce.limit;
      refused += !good;
      y[i] = good ? reduce(word) : -1;
    }
  }
  for (int64_t limb = 0; refused > 0 && limb < job.limbs; ++limb) {
    const WordReduction reduce(job.moduli[limb]);
    int32_t* const y = job.y + (limb * job.count + task) * job.n;
    for (int64_t i = 0; i < job.n; ++i) {
      if (y[i] >= 0) continue;
      uint64_t word = stream.next();
      while (word >= reduce.limit) word = stream.next();
      y[i] = reduce(word);
    }
  }
}

#pragma GCC diagnostic pop
