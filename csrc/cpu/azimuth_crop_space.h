// The work space of azimuth_crop: one pair at a time, one of these for each thread. Internal linkage.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/azimuth_plan.h"

namespace geoloc_fast::cpu {

struct CropSpace {
  int64_t query_row;  // floats of a row of the query: Wq to a multiple of 16
  int64_t shifts;     // W to a multiple of 16
  int64_t strip_row;  // a row of the strip with its beginning repeated, and what sixteen lanes read past that

  float* query;         // [K', query_row]
  float* strip;         // [K', shifts] on its way in; then the gradient of the strip
  float* around;        // [K', strip_row]
  float* window;        // [K', query_row] d loss / d window
  float* moved;         // [2 shifts + 16] one row of the query with zeros to W, twice
  float* correlation;   // [shifts]
  float* logit;         // [shifts]
  float* window_slope;  // [shifts]
  double* energy;       // [shifts] of the windows
  double* column;       // [shifts] of the columns
  int64_t bytes;
};

static inline CropSpace crop_space(int64_t values, int64_t query_columns, int64_t columns, void* base) {
  CropSpace space{};
  WorkSpace work(base);
  const int64_t padded = round_up(values, 16);
  space.query_row = round_up(query_columns, 16);
  space.shifts = round_up(columns, 16);
  space.strip_row = space.shifts + space.query_row + 16;
  space.query = work.take<float>(padded * space.query_row);
  space.strip = work.take<float>(padded * space.shifts);
  space.around = work.take<float>(padded * space.strip_row);
  space.window = work.take<float>(padded * space.query_row);
  space.moved = work.take<float>(2 * space.shifts + 32);
  space.correlation = work.take<float>(space.shifts);
  space.logit = work.take<float>(space.shifts);
  space.window_slope = work.take<float>(space.shifts);
  space.energy = work.take<double>(space.shifts);
  space.column = work.take<double>(space.shifts);
  space.bytes = work.bytes();
  return space;
}

// Bound of |computed - exact correlation| / (|query| |strip|) of a pair: chains of at most kSumBlock values and then
// one of partial sums, four of them side by side.
static inline double crop_error(int64_t values, int64_t query_columns) {
  constexpr double kUnit = 1.0 / 16777216.0;
  const double chains = static_cast<double>(values) * static_cast<double>(query_columns) / kSumBlock;
  return kUnit * (kSumBlock + static_cast<double>(query_columns) + chains + 8);
}

}  // namespace geoloc_fast::cpu
