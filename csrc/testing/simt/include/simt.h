// The device side of the SIMT harness, as kernels see it: checked indices, barriers, warp exchange, launches.
#pragma once

#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "cuda_runtime_api.h"

// The race build instruments kernels with GCC's thread-sanitizer hooks; the harness's own helpers stay out of it.
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread")))

namespace simt {

// Reports an error of the running kernel and leaves it for good.
[[noreturn]] void fail(const std::string& message);
[[noreturn]] void fail_index(const char* operation, int64_t a, int64_t b);

// A 32-bit unsigned index whose arithmetic is checked: what would wrap on the device is an error here. Mixed with a
// 64-bit or floating operand it becomes that type, as on the device.
class Index {
 public:
  constexpr Index(uint32_t value = 0) : value_(value) {}
  SIMT_UNCHECKED constexpr uint32_t value() const { return value_; }

  template <typename T>
    requires std::is_arithmetic_v<T>
  SIMT_UNCHECKED operator T() const {
    if constexpr (std::integral<T> && !std::same_as<T, bool>) {
      if (!std::in_range<T>(value_)) fail_index("conversion to a narrower type", value_, 0);
    }
    return static_cast<T>(value_);
  }

 private:
  uint32_t value_;
};

template <typename T>
concept Small = std::integral<T> && sizeof(T) <= 4;
template <typename T>
concept Wide = std::floating_point<T> || (std::integral<T> && sizeof(T) > 4);

SIMT_UNCHECKED inline Index checked(const char* operation, int64_t result, int64_t a, int64_t b) {
  if (result < 0 || result > INT64_C(0xffffffff)) fail_index(operation, a, b);
  return Index(static_cast<uint32_t>(result));
}

// a op b for 32-bit operands, either of which may be a plain integer. Products stay below 2^64 only as unsigned, but
// any above 2^63 is out of range anyway.
#define SIMT_INDEX_OPERATOR(op)                                                                           \
  SIMT_UNCHECKED inline Index operator op(const Index& a, const Index& b) {                               \
    const __int128 wide = static_cast<__int128>(a.value()) op static_cast<__int128>(b.value());           \
    return checked(#op, wide > INT64_MAX ? INT64_MAX : static_cast<int64_t>(wide), a.value(), b.value()); \
  }                                                                                                       \
  template <Small T>                                                                                      \
  SIMT_UNCHECKED Index operator op(const Index& a, T b) {                                                 \
    return checked(#op, static_cast<int64_t>(a.value()) op static_cast<int64_t>(b), a.value(), b);        \
  }                                                                                                       \
  template <Small T>                                                                                      \
  SIMT_UNCHECKED Index operator op(T a, const Index& b) {                                                 \
    return checked(#op, static_cast<int64_t>(a) op static_cast<int64_t>(b.value()), a, b.value());        \
  }                                                                                                       \
  template <Wide T>                                                                                       \
  SIMT_UNCHECKED T operator op(const Index& a, T b) {                                                     \
    return static_cast<T>(a.value()) op b;                                                                \
  }                                                                                                       \
  template <Wide T>                                                                                       \
  SIMT_UNCHECKED T operator op(T a, const Index& b) {                                                     \
    return a op static_cast<T>(b.value());                                                                \
  }
SIMT_INDEX_OPERATOR(+)
SIMT_INDEX_OPERATOR(-)
SIMT_INDEX_OPERATOR(*)
SIMT_INDEX_OPERATOR(/)
#undef SIMT_INDEX_OPERATOR

#define SIMT_INDEX_OPERATOR(op)                                                                    \
  SIMT_UNCHECKED inline Index operator op(const Index& a, const Index& b) {                        \
    return checked(#op, static_cast<int64_t>(a.value()) op b.value(), a.value(), b.value());       \
  }                                                                                                \
  template <Small T>                                                                               \
  SIMT_UNCHECKED Index operator op(const Index& a, T b) {                                          \
    return checked(#op, static_cast<int64_t>(a.value()) op static_cast<int64_t>(b), a.value(), b); \
  }                                                                                                \
  template <std::integral T>                                                                       \
    requires Wide<T>                                                                               \
  SIMT_UNCHECKED T operator op(const Index& a, T b) {                                              \
    return static_cast<T>(a.value()) op b;                                                         \
  }
SIMT_INDEX_OPERATOR(%)
SIMT_INDEX_OPERATOR(&)
SIMT_INDEX_OPERATOR(>>)
#undef SIMT_INDEX_OPERATOR

#define SIMT_INDEX_OPERATOR(op)                                        \
  template <typename T>                                                \
    requires std::is_arithmetic_v<T>                                   \
  SIMT_UNCHECKED bool operator op(const Index& a, T b) {               \
    return static_cast<int64_t>(a.value()) op static_cast<int64_t>(b); \
  }                                                                    \
  SIMT_UNCHECKED inline bool operator op(const Index& a, const Index& b) { return a.value() op b.value(); }
SIMT_INDEX_OPERATOR(==)
SIMT_INDEX_OPERATOR(!=)
SIMT_INDEX_OPERATOR(<)
SIMT_INDEX_OPERATOR(<=)
SIMT_INDEX_OPERATOR(>)
SIMT_INDEX_OPERATOR(>=)
#undef SIMT_INDEX_OPERATOR

template <typename T>
  requires std::is_arithmetic_v<T>
SIMT_UNCHECKED T& operator+=(T& a, const Index& b) {
  return a = static_cast<T>(a + b);
}

struct Index3 {
  Index x, y, z;
};

const Index3& thread_index();
const Index3& block_index();
const Index3& block_size();
const Index3& grid_size();

unsigned char* dynamic_shared();
void block_barrier(const char* file, int line);
void warp_barrier(const char* file, int line);

// Lends this lane's value to the warp and returns that of another lane, after all lanes have lent theirs.
void warp_exchange(const void* mine, void* theirs, size_t bytes, int lane, const char* file, int line);
// The same for all 32 lanes at once.
void warp_gather(const void* mine, void* all, size_t bytes, const char* file, int line);
int lane_index();

template <typename T>
SIMT_UNCHECKED T shuffle_xor(unsigned mask, T value, int distance, const char* file, int line) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (mask != 0xffffffffu) fail("only shuffles over the full warp are emulated");
  T result;
  warp_exchange(&value, &result, sizeof(T), lane_index() ^ distance, file, line);
  return result;
}

// Tells the race check of an atomic access; the plain_ functions then touch the memory without a check.
void atomic_access(void* pointer, size_t bytes);
template <typename T>
SIMT_UNCHECKED T plain_load(const T* pointer) {
  return *pointer;
}
template <typename T>
SIMT_UNCHECKED T plain_exchange(T* pointer, T value) {
  const T old = *pointer;
  *pointer = value;
  return old;
}

// Runs a grid. Throws simt::Error where a kernel goes wrong; returns an error where CUDA would refuse the launch.
cudaError_t run(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);

}  // namespace simt
