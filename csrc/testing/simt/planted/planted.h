// Kernels with one deliberate mistake each, to show that the harness catches it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/launch.cuh"

namespace planted {

inline constexpr int kThreads = 64;

// What a planted kernel looks like: right when bug is false. x and y hold kThreads entries.
using Kernel = void (*)(bool bug, const int64_t* x, int64_t* y);

struct Bug {
  std::string name;
  const char* kernel_name;
  Kernel kernel;
  unsigned blocks;

  cudaError_t launch(bool bug, const int64_t* x, int64_t* y) const {
    const mcfhe::cuda::LaunchShape shape{dim3(blocks), dim3(kThreads), kThreads * sizeof(int64_t)};
    return mcfhe::cuda::launch(kernel_name, kernel, shape, nullptr, bug, x, y);
  }
};

std::vector<Bug>& all();

// Enters a bug into all() when the program starts.
struct Register {
  explicit Register(Bug bug) { all().push_back(std::move(bug)); }
};

// PLANTED(name, blocks): the mistake `name`, made by name_kernel, launched on that many blocks.
#define PLANTED(name, blocks) const Register register_##name({#name, MCFHE_KERNEL(name##_kernel), blocks})

}  // namespace planted
