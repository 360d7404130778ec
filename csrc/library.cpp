// The one place where op schemas are declared. docs/architecture.md gives shapes and ranges.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(mcfhe, m) {
  m.def(
      "conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? poly, Tensor moduli, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, int[]? weight_bounds=None, int[]? pool=None, Tensor? pool_factor=None) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? poly, Tensor moduli, int[]? weight_bounds=None) -> "
      "Tensor");
  m.def("sum_pool2d(Tensor x, Tensor? factor, Tensor moduli, int[2] kernel, int[2] stride, int[2] padding) -> Tensor");
  m.def("square(Tensor x, Tensor moduli) -> Tensor");
  m.def("poly(Tensor x, Tensor coefficients, Tensor moduli) -> Tensor");
  m.def("align_add(Tensor x, Tensor y, Tensor? x_factor, Tensor? y_factor, Tensor moduli) -> Tensor");
  m.def("add_const(Tensor x, Tensor constant, Tensor moduli, int? streams=None) -> Tensor");
  m.def("count_out_of_range(Tensor x, Tensor moduli) -> Tensor");
  m.def("ntt(Tensor x, Tensor tables, Tensor moduli, bool inverse=False) -> Tensor");
  m.def("tensor_square(Tensor x, Tensor? shift, Tensor? coefficients, Tensor moduli, int[]? pool=None) -> Tensor");
  m.def("relinearise(Tensor x, Tensor keys, Tensor tables, Tensor moduli) -> Tensor");
  m.def("rescale(Tensor x, Tensor tables, Tensor moduli) -> Tensor");
  m.def("expand_uniform(Tensor seeds, Tensor moduli, int n) -> Tensor");
  m.def("cpu_isa() -> str");
}

// Importing mcfhe._C loads the shared library, which registers the ops above; the module itself is empty.
PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
