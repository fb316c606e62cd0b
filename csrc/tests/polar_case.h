// Cases of polar_resample, for its tests on the CPU and in the emulator.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "common/half.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::tests {

struct PolarCase {
  int64_t batch, channels, rows, cols, out_rows, out_cols;
  bool across, outer, replicate, normalize;
  std::vector<double> center = {}, radius = {}, heading = {};  // empty or one a image
};

template <typename T>
constexpr DType dtype_of() {
  if (sizeof(T) == 1) return DType::kUInt8;
  if (sizeof(T) == 4) return DType::kFloat32;
  return std::is_same_v<T, Float16> ? DType::kFloat16 : DType::kBFloat16;
}

template <typename T>
std::vector<T> random_pixels(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<T> pixels(static_cast<size_t>(count));
  for (T& pixel : pixels) pixel = from_float<T>(static_cast<float>(random() % 256));
  return pixels;
}

// Grey levels that one rounding to T may take from `value`.
template <typename T>
double rounding_of(double value) {
  return sizeof(T) == 1                ? 0.5
         : std::is_same_v<T, BFloat16> ? std::fabs(value) / 256
         : sizeof(T) == 2              ? std::fabs(value) / 2048
                                       : 0.0;
}

// What both directions take. The geometry lies in memory of the device that is asked.
template <typename Doubles>
void set_geometry(const PolarCase& c, const Doubles& center, const Doubles& radius, const Doubles& heading,
                  PolarGeometry* p) {
  p->batch = c.batch, p->channels = c.channels, p->in_rows = c.rows, p->in_cols = c.cols;
  p->out_rows = c.out_rows, p->out_cols = c.out_cols;
  p->center = center.size() ? center.data() : nullptr;
  p->max_radius = radius.size() ? radius.data() : nullptr;
  p->heading_deg = heading.size() ? heading.data() : nullptr;
  p->column0_deg = 180.0;
  p->outer_radius = c.outer;
  p->replicate_border = c.replicate;
}

template <typename In>
void set_images(const PolarCase& c, const In* images, PolarResampleParams* p) {
  p->images = images;
  p->images_dtype = dtype_of<In>();
  p->stride_batch = c.channels * c.rows * c.cols;
  p->stride_channel = c.across ? 1 : c.rows * c.cols;
  p->stride_col = c.across ? c.channels : 1;
  p->stride_row = c.cols * p->stride_col;
  p->normalize = c.normalize;
  for (int64_t n = 0; n < c.channels && n < kMaxChannels; ++n) {
    p->scale[n] = 1.0f / static_cast<float>(50 + n);
    p->offset[n] = -2.0f + static_cast<float>(n);
  }
}

// check(case, name) for small images of every layout and border.
template <typename Check>
void sizes_layouts_borders(const Check& check) {
  const int64_t sizes[][2] = {{1, 1}, {1, 6}, {5, 1}, {2, 2}, {3, 2}, {2, 9}, {17, 23}, {40, 33}};
  for (const auto& size : sizes)
    for (int64_t channels : {1, 3, 4, 7})
      for (int kind = 0; kind < 8; ++kind)
        check(
            {2, channels, size[0], size[1], 5, 19, (kind & 1) != 0, (kind & 2) != 0, (kind & 4) != 0, (kind & 1) == 0},
            std::to_string(size[0]) + "x" + std::to_string(size[1]) + "x" + std::to_string(channels) + " kind " +
                std::to_string(kind));
}

// And for images whose circle is off the centre, far outside, around a corner, of a radius of 0 and of a negative one.
template <typename Check>
void geometry_of_each_image(const Check& check) {
  for (bool across : {false, true})
    for (bool replicate : {false, true}) {
      PolarCase c{5, 3, 20, 28, 70, 37, across, false, replicate, true};
      c.center = {3.5, 22.25, -300.0, 500.0, 20.0, 28.0, 4.0, 7.0, 10.0, 14.0};
      c.radius = {12.0, 80.0, 30.0, 0.0, -9.0};
      c.heading = {0.0, 33.3, -721.0, 90.0, 1e6 + 0.25};
      check(c, std::string("geometry, ") + (across ? "across" : "apart") + (replicate ? ", replicate" : ""));
    }
}

}  // namespace geoloc_fast::tests
