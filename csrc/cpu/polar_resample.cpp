// SPDX-License-Identifier: Apache-2.0
#include "geoloc_fast/polar_resample.h"

#include <cmath>

#include "common/polar_geometry.h"
#include "cpu/isa.h"

namespace geoloc_fast::cpu {

GEOLOC_FAST_DECLARE_KERNEL(Status, polar_resample, (const PolarResampleParams& params, PolarPath path, int threads))
GEOLOC_FAST_DECLARE_KERNEL(Status, polar_resample_backward,
                           (const PolarResampleBackwardParams& params, PolarPath path, int threads))

namespace {

// Positions in units of 2^-14 pixel fit 32 bits, and 2 x 2 taps exist.
bool fits_tiles(const PolarGeometry& p) {
  constexpr double kFarthest = 65000.0;
  if (p.in_rows < 2 || p.in_cols < 2 || p.in_rows > kFarthest || p.in_cols > kFarthest) return false;
  if (!std::isfinite(p.column0_deg)) return false;
  for (int64_t b = 0; b < p.batch; ++b) {
    const PolarView view = polar_view(p, b);
    const double reach = std::fabs(view.max_radius);
    // Written so that a NaN fails too.
    if (!(std::fabs(view.center_row) + reach < kFarthest && std::fabs(view.center_col) + reach < kFarthest &&
          std::fabs(p.column0_deg + view.heading_deg) < 1e9))
      return false;
  }
  return true;
}

bool offsets_fit(int64_t rows, int64_t cols, int64_t stride_row, int64_t stride_col) {
  constexpr int64_t kLimit = int64_t{1} << 31;
  return stride_row < kLimit && stride_col < kLimit && rows * stride_row + cols * stride_col < kLimit;
}

}  // namespace

const char* polar_path_name(PolarPath path) {
  constexpr const char* kNames[] = {"generic", "rgb8", "rgba8", "planar8", "rgb", "rgba", "planar"};
  return kNames[static_cast<int>(path)];
}

PolarPath polar_path(const PolarResampleParams& p) {
#if defined(GEOLOC_FAST_X86_KERNELS)
  const bool across = p.stride_channel == 1 && p.stride_col == p.channels && (p.channels == 3 || p.channels == 4);
  const bool planar = p.stride_col == 1;
  // Rows that do not overlap: loads that look past a row's end then still lie inside the image.
  if ((across || planar) && p.stride_row >= p.in_cols * p.stride_col && fits_tiles(p) &&
      offsets_fit(p.in_rows, p.in_cols, p.stride_row, p.stride_col)) {
    const bool bytes = p.images_dtype == DType::kUInt8;
    if (!across) return bytes ? PolarPath::kPlanar8 : PolarPath::kPlanar;
    if (p.channels == 3) return bytes ? PolarPath::kRgb8 : PolarPath::kRgb;
    return bytes ? PolarPath::kRgba8 : PolarPath::kRgba;
  }
#endif
  return PolarPath::kGeneric;
}

PolarPath polar_path(const PolarResampleBackwardParams& p) {
#if defined(GEOLOC_FAST_X86_KERNELS)
  if (fits_tiles(p) && offsets_fit(p.in_rows, p.in_cols, p.in_cols, 1)) return PolarPath::kPlanar;
#endif
  return PolarPath::kGeneric;
}

Status polar_resample(const PolarResampleParams& params, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(polar_resample)(params, polar_path(params), threads);
}

Status polar_resample_backward(const PolarResampleBackwardParams& params, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(polar_resample_backward)(params, polar_path(params), threads);
}

}  // namespace geoloc_fast::cpu
