// Uniform residues from seeds, as SEAL expands the second component of a seeded ciphertext: BLAKE2Xb over a counter, 64
// bits a residue. The seeds are public (they travel in the clear), so nothing here needs to run in constant time.
// kernels/blake2xb.h says what the stream is. Independent hashes are computed eight at a time, one in each lane of a
// vector.

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between functions of this file alone

using blake2::kIv;
using blake2::kOutputWords;
constexpr int64_t kHashLanes = 8;
constexpr int64_t kHashWords = blake2::kStateWords;
typedef uint64_t HashLanes __attribute__((vector_size(8 * kHashLanes)));

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
    v[i + 8] = broadcast(kIv[i]);
  }
  v[12] ^= broadcast(bytes);
  if (last) v[14] = ~v[14];
#pragma GCC unroll 12
  for (int round = 0; round < blake2::kRounds; ++round) {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const auto word = [&](int i) { return i < words ? message[i] : zero; };
      const uint8_t* const at = blake2::kMix[g];
      blake_mix(v, at[0], at[1], at[2], at[3], word(blake2::kSigma[round][2 * g]),
                word(blake2::kSigma[round][2 * g + 1]));
    }
  }
  for (int i = 0; i < 8; ++i) h[i] ^= v[i] ^ v[i + 8];
}

// The roots of the outputs counter, .., counter + 7.
inline void blake_roots(const uint64_t* seed, uint64_t counter, HashLanes root[8]) {
  for (int i = 0; i < 8; ++i) root[i] = broadcast(kIv[i]);
  root[0] ^= broadcast(blake2::kRootFirst);
  root[1] ^= broadcast(blake2::kSecond);
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
  for (int64_t node = 0; node < blake2::kNodes; node += kHashLanes) {
    HashLanes h[8];
    for (int i = 0; i < 8; ++i) h[i] = broadcast(kIv[i]);
    h[0] ^= broadcast(blake2::kNodeFirst);
    HashLanes second = broadcast(blake2::kSecond + static_cast<uint64_t>(node));
    for (int lane = 0; lane < kHashLanes; ++lane) second[lane] += static_cast<uint64_t>(lane);
    h[1] ^= second;
    h[2] ^= broadcast(blake2::kNodeThird);
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
  for (int64_t limb = 0; limb < job.p.limbs; ++limb) {
    const WordReduction reduce(job.moduli[limb]);
    int32_t* const y = job.y + (limb * job.p.count + task) * job.p.n;
    for (int64_t i = 0; i < job.p.n; ++i) {
      const uint64_t word = stream.next();
      const bool good = word < reduce.limit;
      refused += !good;
      y[i] = good ? reduce(word) : -1;
    }
  }
  for (int64_t limb = 0; refused > 0 && limb < job.p.limbs; ++limb) {
    const WordReduction reduce(job.moduli[limb]);
    int32_t* const y = job.y + (limb * job.p.count + task) * job.p.n;
    for (int64_t i = 0; i < job.p.n; ++i) {
      if (y[i] >= 0) continue;
      uint64_t word = stream.next();
      while (word >= reduce.limit) word = stream.next();
      y[i] = reduce(word);
    }
  }
}

#pragma GCC diagnostic pop
