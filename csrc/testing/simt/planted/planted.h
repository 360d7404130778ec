// Kernels with one deliberate mistake each, to show that the harness catches it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <vector>

namespace planted {

struct Bug {
  std::string name;
  // Runs the kernel with its mistake, or, bug = false, as it should have been written.
  cudaError_t (*launch)(bool bug, const int64_t* x, int64_t* y);
};

std::vector<Bug>& all();

// Enters a bug into all() when the program starts.
struct Register {
  explicit Register(Bug bug) { all().push_back(std::move(bug)); }
};

}  // namespace planted
