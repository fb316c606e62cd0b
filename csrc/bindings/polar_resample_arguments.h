// How Python hands polar_resample to either native module.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/bindings.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::bindings {

inline void set_polar_geometry(PolarGeometry& p, const Sizes& images_size, int64_t out_rows, int64_t out_cols,
                               uintptr_t center, uintptr_t max_radius, uintptr_t heading_deg, double column0_deg,
                               bool outer_radius, bool replicate_border) {
  p.batch = images_size[0], p.channels = images_size[1], p.in_rows = images_size[2], p.in_cols = images_size[3];
  p.out_rows = out_rows, p.out_cols = out_cols;
  p.center = reinterpret_cast<const double*>(center);
  p.max_radius = reinterpret_cast<const double*>(max_radius);
  p.heading_deg = reinterpret_cast<const double*>(heading_deg);
  p.column0_deg = column0_deg;
  p.outer_radius = outer_radius;
  p.replicate_border = replicate_border;
}

inline PolarResampleParams polar_resample_params(uintptr_t images, int images_dtype, const Sizes& images_size,
                                                 const Sizes& images_stride, uintptr_t out, int out_dtype,
                                                 int64_t out_rows, int64_t out_cols, uintptr_t center,
                                                 uintptr_t max_radius, uintptr_t heading_deg, double column0_deg,
                                                 bool outer_radius, bool replicate_border,
                                                 const std::vector<double>& mean, const std::vector<double>& std) {
  PolarResampleParams p{};
  set_polar_geometry(p, images_size, out_rows, out_cols, center, max_radius, heading_deg, column0_deg, outer_radius,
                     replicate_border);
  p.images = reinterpret_cast<const void*>(images);
  p.out = reinterpret_cast<void*>(out);
  p.images_dtype = static_cast<DType>(images_dtype);
  p.out_dtype = static_cast<DType>(out_dtype);
  p.stride_batch = images_stride[0], p.stride_channel = images_stride[1];
  p.stride_row = images_stride[2], p.stride_col = images_stride[3];
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

inline PolarResampleBackwardParams polar_resample_backward_params(
    uintptr_t grad_out, int grad_out_dtype, const Sizes& images_size, uintptr_t grad_images, int64_t out_rows,
    int64_t out_cols, uintptr_t center, uintptr_t max_radius, uintptr_t heading_deg, double column0_deg,
    bool outer_radius, bool replicate_border, const std::vector<double>& std) {
  PolarResampleBackwardParams p{};
  set_polar_geometry(p, images_size, out_rows, out_cols, center, max_radius, heading_deg, column0_deg, outer_radius,
                     replicate_border);
  p.grad_out = reinterpret_cast<const void*>(grad_out);
  p.grad_images = reinterpret_cast<float*>(grad_images);
  p.grad_out_dtype = static_cast<DType>(grad_out_dtype);
  p.normalize = !std.empty();
  if (p.normalize) {
    if (p.channels > kMaxChannels || static_cast<int64_t>(std.size()) != p.channels)
      check(Status::kBadSize, "polar_resample_backward");
    for (int64_t c = 0; c < p.channels; ++c) p.scale[c] = static_cast<float>(1.0 / std[c]);
  }
  return p;
}

}  // namespace geoloc_fast::bindings
