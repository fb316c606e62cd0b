// What an operator on the GPU says when it fails: what it was given, and CUDA's own words.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "bindings/bindings.h"

namespace geoloc_fast::bindings {

// "[2, 3, 512, 512]"
template <typename Size>
std::string shape_text(const Size& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "[" : ", ") + std::to_string(size);
  return text + "]";
}

// `given` is such as "images [2, 3, 512, 512]".
inline void check_cuda(Status status, const char* op, const std::string& given) {
  if (status == Status::kOk) return;
  const cudaError_t error = cudaGetLastError();
  check(status, op, error == cudaSuccess ? given : given + ": " + cudaGetErrorString(error));
}

}  // namespace geoloc_fast::bindings
