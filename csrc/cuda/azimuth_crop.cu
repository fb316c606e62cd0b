// SPDX-License-Identifier: Apache-2.0
#include "cuda/azimuth_crop.cuh"
#include "cuda/azimuth_crop_heuristics.h"
#include "cuda/device_guard.h"
#include "cuda/strip_facts.h"

namespace geoloc_fast::cuda {
namespace {

template <typename Params>
Status facts(const Params& p, const CropSpace& space, Stream stream) {
  const Status status = launch_facts(p.query, p.query_width, space.query, stream);
  return status == Status::kOk ? launch_facts(p.strips, nullptr, space.strips, stream) : status;
}

template <typename Params>
Status refused(const Params& p) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  return sound(p.query, p.strips) && p.query.items == p.strips.items ? Status::kOk : Status::kBadSize;
}

}  // namespace

int64_t azimuth_crop_workspace(int64_t batch, int64_t columns) { return crop_space(batch, columns, nullptr).bytes; }

int64_t azimuth_crop_shared_bytes(int64_t values, int64_t query_columns, int64_t columns) {
  return crop_launch(values, query_columns, columns).shared_bytes + int64_t{sizeof(CropShared)};
}

Status azimuth_crop(const AzimuthCropParams& p, int device, void* stream) {
  Status status = refused(p);
  if (status != Status::kOk) return status;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const Stream on = static_cast<Stream>(stream);
  const CropSpace space = crop_space(p.query.items, p.strips.columns, p.workspace);
  const CropLaunch how = crop_launch(p.query.channels * p.query.height, p.query.columns, p.strips.columns);
  status = facts(p, space, on);
  if (status != Status::kOk) return status;
  return launch(how.shared ? azimuth_crop_kernel<true> : azimuth_crop_kernel<false>, p.query.items, 1, kCropThreads,
                how.shared_bytes, on, p, space);
}

Status azimuth_crop_backward(const AzimuthCropBackwardParams& p, int device, void* stream) {
  Status status = refused(p);
  if (status != Status::kOk) return status;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const Stream on = static_cast<Stream>(stream);
  const CropSpace space = crop_space(p.query.items, p.strips.columns, p.workspace);
  const CropLaunch how = crop_launch(p.query.channels * p.query.height, p.query.columns, p.strips.columns);
  status = facts(p, space, on);
  if (status != Status::kOk) return status;
  return launch(how.shared ? azimuth_crop_backward_kernel<true> : azimuth_crop_backward_kernel<false>, p.query.items, 1,
                kCropThreads, how.shared_bytes, on, p, space);
}

}  // namespace geoloc_fast::cuda
