// A call on the GPU. When it fails it says what it was given, in `given`'s words, and CUDA's own.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "bindings/arguments.h"

namespace geoloc_fast::bindings {

inline void check_cuda(Status status, const char* op, const std::string& given) {
  if (status == Status::kOk) return;
  const cudaError_t error = cudaGetLastError();
  check(status, op, error == cudaSuccess ? given : given + ": " + cudaGetErrorString(error));
}

template <typename Params, typename Kernel>
void define_cuda(pybind11::module_& m, const char* op, Kernel kernel) {
  m.def(op, [=](const pybind11::kwargs& named) {
    Arguments a(op, named);
    Params p{};
    read(a, p);
    const Status status = run_cuda(a, [&](int device, void* stream) { return kernel(p, device, stream); });
    if (status != Status::kOk) check_cuda(status, op, given(a, p));
  });
}

}  // namespace geoloc_fast::bindings
