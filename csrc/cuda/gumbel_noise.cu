// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_guard.h"
#include "cuda/gumbel_noise.cuh"
#include "geoloc_fast/gumbel_noise.h"

namespace geoloc_fast::cuda {

Status gumbel_noise(const int64_t* seed, float* out, int64_t count, int device, void* stream) {
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const int64_t counters = (count + kNoiseBlock - 1) / kNoiseBlock * 16;
  return launch(gumbel_noise_kernel, (counters + kNoiseThreads - 1) / kNoiseThreads, 1, kNoiseThreads, 0,
                static_cast<Stream>(stream), seed, out, count);
}

}  // namespace geoloc_fast::cuda
