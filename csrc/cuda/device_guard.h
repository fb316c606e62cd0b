// Makes `device` current for a scope and puts the caller's device back.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cuda/device.h"

#if !defined(GEOLOC_FAST_SIMT)

namespace geoloc_fast::cuda {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&before_);
    if (status_ == cudaSuccess && before_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = status_ == cudaSuccess;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  bool ok() const { return status_ == cudaSuccess; }

 private:
  cudaError_t status_;
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace geoloc_fast::cuda
#endif
