// What an azimuth operator on the GPU says when it fails: shapes, and CUDA's own words.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cuda_runtime_api.h>

#include "bindings/azimuth_arguments.h"

namespace geoloc_fast::bindings {

inline std::string shape_text(const StripTensor& t) {
  return "[" + std::to_string(t.items) + ", " + std::to_string(t.channels) + ", " + std::to_string(t.height) + ", " +
         std::to_string(t.columns) + "]";
}

inline void check_cuda(Status status, const char* op, const StripTensor& query, const StripTensor& strips) {
  if (status == Status::kOk) return;
  const cudaError_t error = cudaGetLastError();
  std::string detail = "query " + shape_text(query) + ", strips " + shape_text(strips);
  if (error != cudaSuccess) detail += std::string(": ") + cudaGetErrorString(error);
  check(status, op, detail);
}

}  // namespace geoloc_fast::bindings
