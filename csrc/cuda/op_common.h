// What every CUDA op does around its launch: the tensors' device and its current stream, dense inputs, outputs, errors.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdint>
#include <exception>
#include <optional>

#include "checks.h"

namespace mcfhe::cuda {

using torch::headeronly::ScalarType;

inline void check_launch(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // a refused launch is not the next call's error
  STD_TORCH_CHECK(false, "mcfhe::", op, ": CUDA launch failed: ", cudaGetErrorString(error));
}

// Makes x's device current for the lifetime of the call and finds its current stream.
class DeviceScope {
 public:
  explicit DeviceScope(const Tensor& x) : guard_(x.get_device_index()), index_(x.get_device_index()) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  int32_t index_;
};

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(dense(*t)) : std::nullopt;
}
inline const int64_t* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr<int64_t>() : nullptr;
}

// An int64 or int32 tensor on x's device. Out of memory is an error with the numbers, after which the device is as
// before; a device that an earlier error broke is another, since to ask it for less would help nobody.
inline Tensor allocate(const char* op, const Tensor& x, const IntList& shape, ScalarType type = ScalarType::Long) {
  try {
    return torch::stable::new_empty(x, shape, type);
  } catch (const std::exception& error) {
    int64_t bytes = type == ScalarType::Int ? 4 : 8;
    for (const int64_t size : shape) bytes *= size;
    size_t free = 0;
    size_t total = 0;
    const cudaError_t state = cudaMemGetInfo(&free, &total);
    cudaGetLastError();
    const bool usable =
        state == cudaSuccess || state == cudaErrorMemoryAllocation || state == cudaErrorStreamCaptureUnsupported;
    STD_TORCH_CHECK(usable, "mcfhe::", op, ": CUDA device ", x.get_device_index(),
                    " is of no use: ", cudaGetErrorString(state), "; restart the process (", error.what(), ")");
    STD_TORCH_CHECK(false, "mcfhe::", op, ": out of memory: the result needs ", bytes, " bytes, CUDA device ",
                    x.get_device_index(), " has ", free, " of ", total, " free; use a smaller batch (", error.what(),
                    ")");
  }
}

inline Tensor allocate_like(const char* op, const Tensor& x) {
  IntList shape;
  for (int64_t i = 0; i < x.dim(); ++i) shape.push_back(x.size(i));
  return allocate(op, x, shape);
}

}  // namespace mcfhe::cuda
