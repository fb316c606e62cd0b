// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_guard.h"
#include "cuda/polar_resample.cuh"

namespace geoloc_fast::cuda {
namespace {

template <PolarLoad kLoad, typename In, typename Out>
Status launch_forward(const PolarResampleParams& p, Stream stream) {
  const PolarPlan plan = polar_plan(p);
  return launch(polar_resample_kernel<kLoad, In, Out>, plan.tiles, plan.images, kPolarThreads, 0, stream, p, plan);
}

template <PolarLoad kLoad, typename In>
Status resample(const PolarResampleParams& p, Stream stream) {
  switch (p.out_dtype) {
    case DType::kUInt8: return launch_forward<kLoad, In, uint8_t>(p, stream);
    case DType::kFloat16: return launch_forward<kLoad, In, half_t>(p, stream);
    case DType::kBFloat16: return launch_forward<kLoad, In, bf16_t>(p, stream);
    case DType::kFloat32: return launch_forward<kLoad, In, float>(p, stream);
  }
  return Status::kBadDType;
}

template <typename Grad>
Status launch_backward(const PolarResampleBackwardParams& p, Stream stream) {
  const PolarPlan plan = polar_plan(p);
  return launch(polar_resample_backward_kernel<Grad>, plan.tiles, plan.images, kPolarThreads, 0, stream, p, plan);
}

}  // namespace

Status polar_resample(const PolarResampleParams& p, int device, void* stream_pointer) {
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  if (p.channels == 0) return Status::kOk;
  const Stream stream = static_cast<Stream>(stream_pointer);
  switch (p.images_dtype) {
    case DType::kUInt8:
      switch (polar_load(p)) {
        case PolarLoad::kRgb8: return resample<PolarLoad::kRgb8, uint8_t>(p, stream);
        case PolarLoad::kRgba8: return resample<PolarLoad::kRgba8, uint8_t>(p, stream);
        case PolarLoad::kSingle: return resample<PolarLoad::kSingle, uint8_t>(p, stream);
      }
      break;
    case DType::kFloat16: return resample<PolarLoad::kSingle, half_t>(p, stream);
    case DType::kBFloat16: return resample<PolarLoad::kSingle, bf16_t>(p, stream);
    case DType::kFloat32: return resample<PolarLoad::kSingle, float>(p, stream);
  }
  return Status::kBadDType;
}

Status polar_resample_backward(const PolarResampleBackwardParams& p, int device, void* stream_pointer) {
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const Stream stream = static_cast<Stream>(stream_pointer);
  const Status cleared =
      fill_bytes(p.grad_images, 0, p.batch * p.channels * p.in_rows * p.in_cols * int64_t{sizeof(float)}, stream);
  if (cleared != Status::kOk || p.channels == 0 || p.in_rows == 0 || p.in_cols == 0) return cleared;
  switch (p.grad_out_dtype) {
    case DType::kFloat16: return launch_backward<half_t>(p, stream);
    case DType::kBFloat16: return launch_backward<bf16_t>(p, stream);
    case DType::kFloat32: return launch_backward<float>(p, stream);
    case DType::kUInt8: break;
  }
  return Status::kBadDType;
}

}  // namespace geoloc_fast::cuda
