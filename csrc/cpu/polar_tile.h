// Where the pixels of a tile of 16 output columns lie: what every CPU path of polar_resample starts from.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "common/polar_geometry.h"
#include "cpu/polar_lanes.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

constexpr int kTileColumns = 16;

struct Angles {
  alignas(64) double cosine[kTileColumns];
  alignas(64) double sine[kTileColumns];
};

// Cosine and sine of an angle in degrees, exact at multiples of 90. NaN and infinity give NaN.
static inline void cosine_sine(double degrees, double* cosine, double* sine) {
  constexpr double kRadPerDeg = 0.017453292519943295;
  const double turned = std::fmod(degrees, 360.0);
  const double quadrant = std::floor(turned / 90.0 + 0.5);  // -4 .. 4
  const double rest = (turned - 90.0 * quadrant) * kRadPerDeg;
  const double c = std::cos(rest), s = std::sin(rest);
  const double turns = quadrant - 4.0 * std::floor(quadrant * 0.25);  // 0 .. 3
  *cosine = turns == 0.0 ? c : turns == 1.0 ? -s : turns == 2.0 ? -c : s;
  *sine = turns == 0.0 ? s : turns == 1.0 ? c : turns == 2.0 ? -s : -c;
}

// Of the azimuths of columns 0 .. 15, counted from the first.
static inline Angles column_steps(int64_t out_cols) {
  Angles steps;
  for (int k = 0; k < kTileColumns; ++k)
    cosine_sine(360.0 * k / static_cast<double>(out_cols), &steps.cosine[k], &steps.sine[k]);
  return steps;
}

// Of the azimuths of the 16 columns from `column`: two calls of libm and a rotation.
static inline Angles tile_angles(const Angles& steps, double heading_deg, int64_t column, int64_t out_cols) {
  double cosine, sine;
  cosine_sine(std::fmod(heading_deg, 360.0) + 360.0 * static_cast<double>(column) / static_cast<double>(out_cols),
              &cosine, &sine);
  Angles angles;
  for (int k = 0; k < kTileColumns; ++k) {
    angles.cosine[k] = cosine * steps.cosine[k] - sine * steps.sine[k];
    angles.sine[k] = sine * steps.cosine[k] + cosine * steps.sine[k];
  }
  return angles;
}

#if defined(GEOLOC_FAST_POLAR_LANES)

// One output row of a tile. Offsets are in elements, to the upper left tap; the four taps always exist, and
// those that should not count weigh 0. Weights are integers of 2^-14, two to a word, in the order the path adds.
struct ByteRow {
  alignas(64) int32_t offset[kTileColumns];
  alignas(64) int32_t first[kTileColumns];   // across: upper left | upper right << 16; down: upper left | lower left
  alignas(64) int32_t second[kTileColumns];  // across: the lower two; down: the right two
};
struct FloatRow {
  alignas(64) int32_t offset[kTileColumns];
  alignas(64) float weight[4][kTileColumns];  // upper left, upper right, lower left, lower right
};

constexpr int kByteBits = 14;
constexpr int32_t kByteOne = 1 << kByteBits;

// A coordinate along one axis of `size` pixels, in units of 2^-14: the first tap, and both weights. A position
// outside moves to the nearest pair of taps; each tap weighs what is left of 1 after its distance, so taps that
// are not there lose their share. With `replicate` the position itself is moved to the edge.
GEOLOC_FAST_INLINE void byte_taps(I32 position, int32_t size, bool replicate, I32* tap, I32* weight0, I32* weight1) {
  if (replicate) position = minimum(maximum(position, I32{}), splat_i32((size - 1) << kByteBits));
  *tap = minimum(maximum(position >> kByteBits, I32{}), splat_i32(size - 2));
  const I32 away = position - (*tap << kByteBits);
  *weight0 = maximum(minimum(kByteOne - away, kByteOne + away), I32{});
  *weight1 = maximum(minimum(away, 2 * kByteOne - away), I32{});
}

GEOLOC_FAST_INLINE void float_taps(F64 low, F64 high, int32_t size, bool replicate, I32* tap, F32* weight0,
                                   F32* weight1) {
  if (replicate) {
    const F64 last = splat_f64(size - 1);
    low = minimum(maximum(low, F64{}), last);
    high = minimum(maximum(high, F64{}), last);
  }
  // Half a pixel less, rounded: the floor, or for whole numbers perhaps one less, which weighs the same taps.
  *tap = minimum(maximum(round_to_i32(low - 0.5, high - 0.5), I32{}), splat_i32(size - 2));
  const F32 away = to_f32(low - low_f64(*tap), high - high_f64(*tap));
  *weight0 = maximum(minimum(1.0f - away, 1.0f + away), F32{});
  *weight1 = maximum(minimum(away, 2.0f - away), F32{});
}

GEOLOC_FAST_INLINE F64 load_f64(const double* from) { return *(const F64*)from; }
GEOLOC_FAST_INLINE I32 load_i32(const int32_t* from) { return *(const I32*)from; }
GEOLOC_FAST_INLINE F32 load_f32(const float* from) { return *(const F32*)from; }

// Fills `count` rows of a tile, from output row `row`.
template <bool kAcross>
static inline void fill_rows(ByteRow* rows, int64_t row, int64_t count, const PolarGeometry& p, const PolarView& view,
                             const Angles& angles, int64_t stride_row, int64_t stride_col) {
  const int32_t in_rows = static_cast<int32_t>(p.in_rows), in_cols = static_cast<int32_t>(p.in_cols);
  const int32_t step_row = static_cast<int32_t>(stride_row), step_col = static_cast<int32_t>(stride_col);
  const F64 center_row = splat_f64(view.center_row * kByteOne), center_col = splat_f64(view.center_col * kByteOne);
  for (int64_t i = 0; i < count; ++i) {
    const double share = polar_radius_share<double>(row + i, p.out_rows, p.outer_radius);
    const F64 radius = splat_f64(view.max_radius * share * kByteOne);
    for (int at = 0; at < kTileColumns; at += kPixels) {
      const double *cosine = angles.cosine + at, *sine = angles.sine + at;
      const I32 y =
          round_to_i32(center_row - radius * load_f64(cosine), center_row - radius * load_f64(cosine + kPixels / 2));
      const I32 x =
          round_to_i32(center_col + radius * load_f64(sine), center_col + radius * load_f64(sine + kPixels / 2));
      I32 tap_row, upper, lower, tap_col, left, right;
      byte_taps(y, in_rows, p.replicate_border, &tap_row, &upper, &lower);
      byte_taps(x, in_cols, p.replicate_border, &tap_col, &left, &right);
      // The left weight is what the right one leaves of the row's, so that rounding keeps the sum.
      const I32 across = left + right;
      const I32 half = splat_i32(kByteOne / 2);
      const I32 upper_right = (upper * right + half) >> kByteBits, lower_right = (lower * right + half) >> kByteBits;
      const I32 upper_left = ((upper * across + half) >> kByteBits) - upper_right;
      const I32 lower_left = ((lower * across + half) >> kByteBits) - lower_right;
      *(I32*)(rows[i].offset + at) = tap_row * step_row + tap_col * step_col;
      *(I32*)(rows[i].first + at) = upper_left | (kAcross ? upper_right : lower_left) << 16;
      *(I32*)(rows[i].second + at) = kAcross ? lower_left | lower_right << 16 : upper_right | lower_right << 16;
    }
  }
}

static inline void fill_rows(FloatRow* rows, int64_t row, int64_t count, const PolarGeometry& p, const PolarView& view,
                             const Angles& angles, int64_t stride_row, int64_t stride_col) {
  const int32_t in_rows = static_cast<int32_t>(p.in_rows), in_cols = static_cast<int32_t>(p.in_cols);
  const int32_t step_row = static_cast<int32_t>(stride_row), step_col = static_cast<int32_t>(stride_col);
  const F64 center_row = splat_f64(view.center_row), center_col = splat_f64(view.center_col);
  for (int64_t i = 0; i < count; ++i) {
    const F64 radius = splat_f64(view.max_radius * polar_radius_share<double>(row + i, p.out_rows, p.outer_radius));
    for (int at = 0; at < kTileColumns; at += kPixels) {
      const double *cosine = angles.cosine + at, *sine = angles.sine + at;
      I32 tap_row, tap_col;
      F32 upper, lower, left, right;
      float_taps(center_row - radius * load_f64(cosine), center_row - radius * load_f64(cosine + kPixels / 2), in_rows,
                 p.replicate_border, &tap_row, &upper, &lower);
      float_taps(center_col + radius * load_f64(sine), center_col + radius * load_f64(sine + kPixels / 2), in_cols,
                 p.replicate_border, &tap_col, &left, &right);
      *(I32*)(rows[i].offset + at) = tap_row * step_row + tap_col * step_col;
      *(F32*)(rows[i].weight[0] + at) = upper * left;
      *(F32*)(rows[i].weight[1] + at) = upper * right;
      *(F32*)(rows[i].weight[2] + at) = lower * left;
      *(F32*)(rows[i].weight[3] + at) = lower * right;
    }
  }
}

#endif  // GEOLOC_FAST_POLAR_LANES

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
