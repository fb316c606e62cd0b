// How Python hands polar_resample to either native module.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/arguments.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::bindings {

inline void read_geometry(Arguments& a, PolarGeometry& p) {
  p.center = a.optional<const double>("center", 2 * p.batch);
  p.max_radius = a.optional<const double>("max_radius", p.batch);
  p.heading_deg = a.optional<const double>("heading_deg", p.batch);
  p.column0_deg = a.number("column0_deg");
  p.outer_radius = a.flag("outer_radius");
  p.replicate_border = a.flag("replicate_border");
}

// Whether there is anything to normalise by: C standard deviations.
inline bool read_std(Arguments& a, int64_t channels, float* scale, std::vector<double>& std) {
  std = a.numbers("std");
  if (std.empty()) return false;
  if (channels > kMaxChannels || static_cast<int64_t>(std.size()) != channels) check(Status::kBadSize, a.op);
  for (int64_t c = 0; c < channels; ++c) scale[c] = static_cast<float>(1.0 / std[c]);
  return true;
}

inline void read(Arguments& a, PolarResampleParams& p) {
  Sizes size, stride;
  p.images = a.any("images", p.images_dtype, &size, &stride);
  p.batch = size[0], p.channels = size[1], p.in_rows = size[2], p.in_cols = size[3];
  p.stride_batch = stride[0], p.stride_channel = stride[1], p.stride_row = stride[2], p.stride_col = stride[3];
  p.out_rows = a.whole("rows"), p.out_cols = a.whole("cols");
  p.out = a.any("out", p.out_dtype, nullptr, nullptr, p.batch * p.channels * p.out_rows * p.out_cols);
  read_geometry(a, p);
  std::vector<double> std;
  const std::vector<double> mean = a.numbers("mean");
  p.normalize = read_std(a, p.channels, p.scale, std);
  if (mean.size() != std.size()) check(Status::kBadSize, a.op);
  for (size_t c = 0; c < mean.size(); ++c) p.offset[c] = static_cast<float>(-mean[c] / std[c]);
}

inline void read(Arguments& a, PolarResampleBackwardParams& p) {
  Sizes size;
  p.grad_out = a.any("grad_out", p.grad_out_dtype, &size);
  p.batch = size[0], p.channels = size[1], p.out_rows = size[2], p.out_cols = size[3];
  p.in_rows = a.whole("in_rows"), p.in_cols = a.whole("in_cols");
  p.grad_images = a.values<float>("grad_images", p.batch * p.channels * p.in_rows * p.in_cols);
  read_geometry(a, p);
  std::vector<double> std;
  p.normalize = read_std(a, p.channels, p.scale, std);
}

inline std::string given(const Arguments&, const PolarGeometry& p) {
  return "images " + shape_text(Sizes{p.batch, p.channels, p.in_rows, p.in_cols});
}

}  // namespace geoloc_fast::bindings
