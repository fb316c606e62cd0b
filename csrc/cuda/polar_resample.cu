// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_guard.h"
#include "cuda/polar_resample.cuh"
#include "cuda/polar_resample_heuristics.h"

namespace geoloc_fast::cuda {
namespace {

template <typename In, typename Out>
Status launch_polar_resample(const PolarResampleParams& p, Stream stream) {
  const int64_t pixels = p.batch * p.out_rows * p.out_cols;
  if (pixels == 0 || p.channels == 0) return Status::kOk;
  return launch(polar_resample_kernel<In, Out>, polar_blocks(pixels), 1, kPolarThreads, 0, stream, p);
}

template <typename In>
Status resample_from(const PolarResampleParams& p, Stream stream) {
  switch (p.out_dtype) {
    case DType::kUInt8: return launch_polar_resample<In, uint8_t>(p, stream);
    case DType::kFloat16: return launch_polar_resample<In, half_t>(p, stream);
    case DType::kBFloat16: return launch_polar_resample<In, bf16_t>(p, stream);
    case DType::kFloat32: return launch_polar_resample<In, float>(p, stream);
  }
  return Status::kBadDType;
}

}  // namespace

Status polar_resample(const PolarResampleParams& p, int device, void* stream) {
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const Stream cuda_stream = static_cast<Stream>(stream);
  switch (p.images_dtype) {
    case DType::kUInt8: return resample_from<uint8_t>(p, cuda_stream);
    case DType::kFloat16: return resample_from<half_t>(p, cuda_stream);
    case DType::kBFloat16: return resample_from<bf16_t>(p, cuda_stream);
    case DType::kFloat32: return resample_from<float>(p, cuda_stream);
  }
  return Status::kBadDType;
}

}  // namespace geoloc_fast::cuda
