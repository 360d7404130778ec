// What the host needs to know of the current device to choose a kernel.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mcfhe::cuda {

struct DeviceTraits {
  int64_t processors;     // multiprocessors
  int major;              // of the compute capability
  bool full_rate_double;  // double at half the float rate or better: data-centre devices
};

inline cudaError_t current_device_traits(DeviceTraits& traits) {
  int device = 0;
  int processors = 0;
  int major = 0;
  int ratio = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, device);
  }
  if (error == cudaSuccess) traits = {processors, major, ratio <= 2};
  return error;
}

}  // namespace mcfhe::cuda
