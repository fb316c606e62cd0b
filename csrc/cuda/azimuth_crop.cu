// SPDX-License-Identifier: Apache-2.0
#include "cuda/azimuth_crop.cuh"
#include "cuda/azimuth_crop_heuristics.h"
#include "cuda/device_guard.h"
#include "cuda/strip_facts.h"

namespace geoloc_fast::cuda {
namespace {

// One block for a pair, with what it reads in shared memory or not.
template <typename Params, typename Kernel>
Status launch_crop(const Params& p, int device, void* stream, Kernel shared, Kernel global) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  if (!sound(p.query, p.strips) || p.query.items != p.strips.items) return Status::kBadSize;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const Stream on = static_cast<Stream>(stream);
  const CropSpace space = crop_space(p.query.items, p.strips.columns, p.workspace);
  const CropLaunch how = crop_launch(p.query.channels * p.query.height, p.query.columns, p.strips.columns);
  Status status = launch_facts(p.query, p.query_width, space.query, on);
  if (status == Status::kOk) status = launch_facts(p.strips, nullptr, space.strips, on);
  if (status != Status::kOk) return status;
  return launch(how.shared ? shared : global, p.query.items, 1, kCropThreads, how.shared_bytes, on, p, space);
}

}  // namespace

int64_t azimuth_crop_workspace(int64_t batch, int64_t columns) { return crop_space(batch, columns, nullptr).bytes; }

int64_t azimuth_crop_shared_bytes(int64_t values, int64_t query_columns, int64_t columns) {
  return crop_launch(values, query_columns, columns).shared_bytes + int64_t{sizeof(CropShared)};
}

Status azimuth_crop(const AzimuthCropParams& p, int device, void* stream) {
  return launch_crop(p, device, stream, &azimuth_crop_kernel<true>, &azimuth_crop_kernel<false>);
}

Status azimuth_crop_backward(const AzimuthCropBackwardParams& p, int device, void* stream) {
  return launch_crop(p, device, stream, &azimuth_crop_backward_kernel<true>, &azimuth_crop_backward_kernel<false>);
}

}  // namespace geoloc_fast::cuda
