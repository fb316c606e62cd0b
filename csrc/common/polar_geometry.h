// The geometry of polar_resample, in one place for every backend. Formula: polar_resample.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>

#include "common/host_device.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast {

// Distance from the centre of output row i as a share of the largest radius.
template <typename Real>
GEOLOC_FAST_HD Real polar_radius_share(int64_t i, int64_t rows, bool outer) {
  return static_cast<Real>(outer ? rows - i : rows - 1 - i) / static_cast<Real>(rows);
}

// What image b is sampled with: the defaults of the header where an argument is absent.
struct PolarView {
  double center_row, center_col, max_radius, heading_deg;
};

GEOLOC_FAST_HD PolarView polar_view(const PolarGeometry& p, int64_t b) {
  PolarView view;
  view.center_row = p.center ? p.center[2 * b] : static_cast<double>(p.in_rows) * 0.5;
  view.center_col = p.center ? p.center[2 * b + 1] : static_cast<double>(p.in_cols) * 0.5;
  view.max_radius =
      p.max_radius ? p.max_radius[b] : static_cast<double>(p.in_rows < p.in_cols ? p.in_rows : p.in_cols) * 0.5;
  view.heading_deg = p.heading_deg ? p.heading_deg[b] : 0.0;
  return view;
}

// The four taps of one output pixel: flat offsets into a channel, and weights. Weights of taps outside the
// image are 0 under the zero border, and their offset points at a pixel that exists.
struct BilinearTaps {
  int64_t offset[4];
  float weight[4];
};

template <typename Real>
GEOLOC_FAST_HD BilinearTaps bilinear_taps(Real row, Real col, int64_t rows, int64_t cols, int64_t stride_row,
                                          int64_t stride_col, bool replicate) {
  // Also catches NaN: a comparison with NaN is false. The bounds keep the conversion to int64 defined.
  const bool usable = row > Real(-1e9) && row < Real(1e9) && col > Real(-1e9) && col < Real(1e9);
  if (!usable) row = col = replicate ? Real(0) : Real(-2);
  const Real row_floor = std::floor(row), col_floor = std::floor(col);
  const float row_part = static_cast<float>(row - row_floor), col_part = static_cast<float>(col - col_floor);
  const int64_t row0 = static_cast<int64_t>(row_floor), col0 = static_cast<int64_t>(col_floor);
  BilinearTaps taps;
  for (int tap = 0; tap < 4; ++tap) {
    const int64_t r = row0 + (tap >> 1), c = col0 + (tap & 1);
    const bool inside = r >= 0 && r < rows && c >= 0 && c < cols;
    const int64_t r_in = r < 0 ? 0 : (r >= rows ? rows - 1 : r);
    const int64_t c_in = c < 0 ? 0 : (c >= cols ? cols - 1 : c);
    const float weight = ((tap >> 1) ? row_part : 1.0f - row_part) * ((tap & 1) ? col_part : 1.0f - col_part);
    taps.offset[tap] = r_in * stride_row + c_in * stride_col;
    taps.weight[tap] = inside || replicate ? weight : 0.0f;
  }
  return taps;
}

}  // namespace geoloc_fast
