// A case of azimuth_match, for its tests on the CPU and in the emulator.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "geoloc_fast/azimuth_match.h"
#include "tests/values.h"

namespace geoloc_fast::tests {

constexpr double kScale = 0.3, kTau = 0.7;  // correlations here are tens

struct MatchCase {
  int64_t batch, references, channels, height, query_columns, columns;
  Selection select;
  Floats query, strips, noise, grad;
  std::vector<int64_t> width;

  MatchCase(int64_t b, int64_t r, int64_t c, int64_t h, int64_t wq, int64_t w, Selection s)
      : batch(b), references(r), channels(c), height(h), query_columns(wq), columns(w), select(s) {
    query = random_values(b * c * h * wq, 1);
    strips = random_values(r * c * h * w, 2);
    noise = random_values(b * r * w, 3);
    grad = random_values(b * r, 4);
    for (int64_t i = 0; i < b; ++i) width.push_back(1 + (3 * i + wq - 1) % wq);
  }
  bool gumbel() const { return select == Selection::kGumbel; }
  int64_t values() const { return channels * height; }
  AzimuthMatchSize size(bool slope, bool backward) const {
    return {batch, references, values(), query_columns, columns, true, select, slope, backward};
  }
  // Of a call with noise [B, R, W] as it lies here.
  void set_noise(AzimuthMatchParams& p) const {
    p.noise = gumbel() ? noise.data() : nullptr;
    p.noise_stride[0] = references * columns, p.noise_stride[1] = columns, p.noise_stride[2] = 1;
  }
};

}  // namespace geoloc_fast::tests
