// The negacyclic transform of one part of a polynomial by one block: 16 values a thread in registers, three exchanges
// in shared memory of which one concerns the whole block.
//
// The butterflies of a transform form a binary tree. Node 1 is the first forward stage over all n values, node i has
// the children 2i and 2i + 1, each over half of its values, and its factor is entry i of the root table. What lies
// below node 2^s + h is by itself a transform of m = n / 2^s values, the h-th run of m outputs. A block computes one
// such part:
//
//   forward   the s stages above the part while it loads (it needs 2^s inputs for each value and one side of each
//             butterfly); kFirst stages on values m / 2^kFirst apart; through shared memory; radix-16 passes on values
//             32 and 2 apart, within a warp's own 512; the last stage on neighbours
//   inverse   the same backwards; the s stages above the part are a kernel of their own (ntt_inverse.cu)
//
// Neighbours stay neighbours and consecutive lanes hold consecutive pairs, so tensors in the transformed order are read
// and written 16 bytes a lane, 512 bytes a warp; in the natural order a warp's accesses are runs of 32 values.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"
#include "ring.cuh"

namespace mcfhe::cuda {

inline constexpr int kPartLog = 13;         // largest part: 8192 values, 34 KiB of shared memory, 512 threads
inline constexpr int kValues = 16;          // a thread's
inline constexpr int kPairs = kValues / 2;  // a thread's, in the transformed order
inline constexpr int kWarpValues = 512;     // what a warp keeps to itself after the first pass
inline constexpr int kMinRingLog = 3;       // n = 8
inline constexpr int kMaxRingLog = 15;      // n = 32768

// Two words of padding after 32: a warp's radix-16 groups, 2 or 32 words apart within 16 runs of 32, then lie in
// different banks, and pairs stay aligned.
__host__ __device__ __forceinline__ constexpr int padded(int entry) { return entry + 2 * (entry >> 5); }

// How polynomials are divided, as far as the compiler must know: stages of the first pass; log2 of the parts of a
// polynomial; log2 of a part's size where it is the largest, 0 where it is a parameter.
template <int kFirst_, int kSplit_, int kLog_>
struct Shape {
  static constexpr int kFirst = kFirst_;
  static constexpr int kSplit = kSplit_;
  static constexpr int kParts = 1 << kSplit;
  static constexpr int kLog = kLog_;
  // Parts of a size that is a parameter have 2^(kFirst + 1), 2^(kFirst + 5) or 2^(kFirst + 9) values, the last below
  // 2^13.
  static constexpr int kThreads = kLog != 0 ? 1 << (kLog - 4) : kFirst == 4 ? kWarpSize : 1 << (kFirst + 5);
};

// x, as something the compiler knows nothing of: what is computed or loaded by it is not kept in registers from one
// transform to the next, where the sums of products need them.
__device__ __forceinline__ uint32_t opaque(uint32_t x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// What a block computes of a polynomial, and which thread of it asks.
template <class S>
struct Part {
  int log_size_;  // of m
  uint32_t h;
  uint32_t thread_ = threadIdx.x;

  __device__ __forceinline__ int log_size() const { return S::kLog != 0 ? S::kLog : log_size_; }
  __device__ __forceinline__ int size() const { return 1 << log_size(); }
  __device__ __forceinline__ int64_t polynomial_size() const { return int64_t{1} << (log_size() + S::kSplit); }
  __device__ __forceinline__ int64_t first() const { return static_cast<int64_t>(h) << log_size(); }
  __device__ __forceinline__ uint32_t node() const { return S::kParts + h; }
  __device__ __forceinline__ int thread() const { return static_cast<int>(thread_); }
  // The same part, of which nothing computed so far can be used.
  __device__ __forceinline__ Part fresh() const { return {log_size_, opaque(h), opaque(thread_)}; }
  // Entry 2 * pair(r) and its neighbour are the thread's r-th pair in the transformed order, if they exist.
  __device__ __forceinline__ int pair(int r) const {
    return thread() / kWarpSize * (kWarpValues / 2) + r * kWarpSize + thread() % kWarpSize;
  }
  // Whether a thread's group of a pass, or its pair, exists: blocks of less than 512 values have threads to spare.
  __device__ __forceinline__ bool has(int index, int count) const { return index < count; }
};

// f(r, pair) for a thread's pairs.
template <class S, typename F>
__device__ __forceinline__ void for_pairs(const Part<S>& part, const F& f) {
#pragma unroll
  for (int r = 0; r < kPairs; ++r) {
    const int pair = part.pair(r);
    if (part.has(pair, part.size() / 2)) f(r, pair);
  }
}

// A radix-16 pass in place over values kStride apart in shared memory; the warp's own 512 values, or the whole part.
template <int kStride, bool kForward, class S>
__device__ __forceinline__ void radix16_pass(uint32_t* shared, const Roots& roots, const Part<S>& same_part) {
  const Part<S> part = same_part.fresh();
  const int group = part.thread();
  if (!part.has(group, part.size() / kValues)) return;
  const int run = group / kStride;
  uint32_t* const words = shared + padded(run * (kValues * kStride) + group % kStride);
  constexpr int kStep = padded(kStride);
  const uint32_t node = (part.node() << (part.log_size() - (kStride == 2 ? 5 : 9))) + static_cast<uint32_t>(run);
  uint32_t v[kValues];
#pragma unroll
  for (int r = 0; r < kValues; ++r) v[r] = words[r * kStep];
  if constexpr (kForward) {
    forward_stages<4>(v, roots, node);
  } else {
    inverse_stages<4>(v, roots, node);
  }
#pragma unroll
  for (int r = 0; r < kValues; ++r) words[r * kStep] = v[r];
}

// The value at `entry` of the part after the 2^kSplit-fold stages above it. from(i) is input i of the polynomial: any
// word that from.reduce makes loose.
template <class S, typename From>
__device__ __forceinline__ uint32_t descend(const From& from, int64_t entry, const Roots& roots, const Part<S>& part) {
  static_assert(S::kSplit == 1 || S::kSplit == 2);
  const uint32_t q = roots.q;
  const auto side = [&](uint32_t x, uint32_t y, uint32_t node, uint32_t right) {
    const uint32_t b = canonical(mul_shoup_lazy(y, __ldg(roots.factors + node), __ldg(roots.quotients + node), q), q);
    return canonical(x, q) + (right != 0 ? q - b : b);
  };
  const int64_t size = part.size();
  if constexpr (S::kSplit == 1) {
    return side(from.reduce(from(entry)), from(entry + size), 1, part.node() & 1);
  } else {
    const uint32_t above = part.node() >> 1;
    const uint32_t x = side(from.reduce(from(entry)), from(entry + 2 * size), 1, above & 1);
    const uint32_t y = side(from.reduce(from(entry + size)), from(entry + 3 * size), 1, above & 1);
    return side(x, y, above, part.node() & 1);
  }
}

// Calls to(r, pair, x, y) for a thread's r-th pair, with loose x and y: entries 2 * pair and 2 * pair + 1 of the part.
// `shared` holds padded(m) words and may still be read by an earlier call.
template <class S, typename From, typename To>
__device__ __forceinline__ void forward_part(uint32_t* shared, const From& from, const To& to, const Roots& roots,
                                             const Part<S>& same_part) {
  constexpr int kRadix = 1 << S::kFirst;
  uint32_t v[kValues];
  const Part<S> part = same_part.fresh();
  const int stride = part.size() >> S::kFirst;
  const int step = padded(stride);
#pragma unroll
  for (int u = 0; u < kValues / kRadix; ++u) {
    const int group = part.thread() + u * static_cast<int>(blockDim.x);
    if (!part.has(group, stride)) continue;
    uint32_t* const w = v + u * kRadix;
#pragma unroll
    for (int r = 0; r < kRadix; ++r) {
      const int64_t entry = group + r * stride;
      if constexpr (S::kSplit == 0) {
        w[r] = r < kRadix / 2 ? from.reduce(from(entry)) : from(entry);
      } else {
        w[r] = descend(from, entry, roots, part);
      }
    }
    forward_stages<S::kFirst>(w, roots, part.node());
  }
  __syncthreads();
#pragma unroll
  for (int u = 0; u < kValues / kRadix; ++u) {
    const int group = part.thread() + u * static_cast<int>(blockDim.x);
    if (!part.has(group, stride)) continue;
#pragma unroll
    for (int r = 0; r < kRadix; ++r) shared[padded(group) + r * step] = v[u * kRadix + r];
  }
  __syncthreads();
  if (part.log_size() >= 10) {
    radix16_pass<32, true>(shared, roots, part);
    __syncwarp();
  }
  if (part.log_size() >= 6) {
    radix16_pass<2, true>(shared, roots, part);
    __syncwarp();
  }
  const int64_t last = static_cast<int64_t>(part.node()) << (part.log_size() - 1);
  for_pairs(part, [&](int r, int pair) {
    uint2 words = *reinterpret_cast<const uint2*>(shared + padded(2 * pair));
    forward_butterfly(words.x, words.y, __ldg(roots.factors + last + pair), __ldg(roots.quotients + last + pair),
                      roots.q);
    to(r, pair, words.x, words.y);
  });
}

// From loose pairs in v, the r-th in v[2r] and v[2r + 1]; calls to(entry of the part, loose value) for every value,
// without the factor 1/n. `shared` as above.
template <class S, typename To>
__device__ __forceinline__ void inverse_part(uint32_t (&v)[kValues], uint32_t* shared, const To& to, const Roots& roots,
                                             const Part<S>& part) {
  const int64_t last = static_cast<int64_t>(part.node()) << (part.log_size() - 1);
  for_pairs(part, [&](int r, int pair) {
    inverse_butterfly(v[2 * r], v[2 * r + 1], __ldg(roots.factors + last + pair), __ldg(roots.quotients + last + pair),
                      roots.q);
  });
  __syncthreads();
  for_pairs(part, [&](int r, int pair) {
    *reinterpret_cast<uint2*>(shared + padded(2 * pair)) = make_uint2(v[2 * r], v[2 * r + 1]);
  });
  __syncwarp();
  if (part.log_size() >= 6) {
    radix16_pass<2, false>(shared, roots, part);
    __syncwarp();
  }
  if (part.log_size() >= 10) radix16_pass<32, false>(shared, roots, part);
  __syncthreads();
  constexpr int kRadix = 1 << S::kFirst;
  const int stride = part.size() >> S::kFirst;
  const int step = padded(stride);
#pragma unroll
  for (int u = 0; u < kValues / kRadix; ++u) {
    const int group = part.thread() + u * static_cast<int>(blockDim.x);
    if (!part.has(group, stride)) continue;
    uint32_t w[kRadix];
#pragma unroll
    for (int r = 0; r < kRadix; ++r) w[r] = shared[padded(group) + r * step];
    inverse_stages<S::kFirst>(w, roots, part.node());
#pragma unroll
    for (int r = 0; r < kRadix; ++r) to(static_cast<int64_t>(group + r * stride), w[r]);
  }
}

// The launch of a transform over polynomials of n = 2^log_n values.
struct PartLaunch {
  int split, log_size;

  explicit constexpr PartLaunch(int log_n)
      : split(log_n < kPartLog ? 0 : log_n - kPartLog), log_size(log_n < kPartLog ? log_n : kPartLog) {}

  LaunchShape shape(int64_t grid_x, int64_t grid_y) const {
    const int threads = log_size > 9 ? 1 << (log_size - 4) : kWarpSize;
    return {dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)), dim3(static_cast<unsigned>(threads)),
            static_cast<size_t>(padded(1 << log_size)) * sizeof(uint32_t)};
  }

  // Calls f.operator()<Shape>(). One stage comes last and four at a time before it; what is left over comes first.
  template <typename F>
  cudaError_t dispatch(const F& f) const {
    if (split == 2) return f.template operator()<Shape<4, 2, kPartLog>>();
    if (split == 1) return f.template operator()<Shape<4, 1, kPartLog>>();
    if (log_size == kPartLog) return f.template operator()<Shape<4, 0, kPartLog>>();
    switch ((log_size - 2) % 4) {
      case 0:
        return f.template operator()<Shape<1, 0, 0>>();
      case 1:
        return f.template operator()<Shape<2, 0, 0>>();
      case 2:
        return f.template operator()<Shape<3, 0, 0>>();
      default:
        return f.template operator()<Shape<4, 0, 0>>();
    }
  }
};

}  // namespace mcfhe::cuda
