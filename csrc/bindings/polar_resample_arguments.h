// How Python hands polar_resample to either native module.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/bindings.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::bindings {

inline PolarResampleParams polar_resample_params(uintptr_t images, int images_dtype, const Sizes& images_size,
                                                 const Sizes& images_stride, uintptr_t out, int out_dtype,
                                                 int64_t out_rows, int64_t out_cols, uintptr_t center,
                                                 uintptr_t max_radius, uintptr_t heading_deg, double column0_deg,
                                                 bool outer_radius, bool replicate_border,
                                                 const std::vector<double>& mean, const std::vector<double>& std) {
  PolarResampleParams p{};
  p.images = reinterpret_cast<const void*>(images);
  p.out = reinterpret_cast<void*>(out);
  p.images_dtype = static_cast<DType>(images_dtype);
  p.out_dtype = static_cast<DType>(out_dtype);
  p.batch = images_size[0], p.channels = images_size[1], p.in_rows = images_size[2], p.in_cols = images_size[3];
  p.out_rows = out_rows, p.out_cols = out_cols;
  p.stride_batch = images_stride[0], p.stride_channel = images_stride[1];
  p.stride_row = images_stride[2], p.stride_col = images_stride[3];
  p.center = reinterpret_cast<const double*>(center);
  p.max_radius = reinterpret_cast<const double*>(max_radius);
  p.heading_deg = reinterpret_cast<const double*>(heading_deg);
  p.column0_deg = column0_deg;
  p.outer_radius = outer_radius;
  p.replicate_border = replicate_border;
  p.normalize = !mean.empty();
  if (p.normalize) {
    if (p.channels > kMaxChannels || static_cast<int64_t>(mean.size()) != p.channels || mean.size() != std.size())
      check(Status::kBadSize, "polar_resample");
    for (int64_t c = 0; c < p.channels; ++c) {
      p.scale[c] = static_cast<float>(1.0 / std[c]);
      p.offset[c] = static_cast<float>(-mean[c] / std[c]);
    }
  }
  return p;
}

}  // namespace geoloc_fast::bindings
