// How azimuth_match and azimuth_crop are to be computed: a cost model, error bounds and the layout of the work space,
// as pure functions of the sizes. Internal linkage throughout, because kernel sources include it (see cpu/simd.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/work_space.h"
#include "geoloc_fast/azimuth_match.h"

namespace geoloc_fast::cpu {

constexpr int64_t kTile = 32;          // strips side by side in the lanes of a product
constexpr int64_t kQueryBlock = 6;     // queries a product holds in registers
constexpr int64_t kRowBlock = 24;      // rows of a gradient that share what is read of the other side
constexpr int64_t kValueBlock = 64;    // values (c, h) of a gradient computed at once
constexpr int64_t kReduceBlock = 128;  // summands of a gradient kept in L1
constexpr int64_t kSumBlock = 64;      // summands of a correlation before the partial sum is put away
constexpr int64_t kScatterBlock = 16;  // rows of a gradient that share the windows read
constexpr int64_t kScatterOthers = 4;  // from this many of the other side at a time
constexpr int64_t kOrderedRow = 32;    // kRowBlock to a multiple of 16

static inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
static inline int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }
static inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t slots(int64_t columns) { return (columns + 1) / 2; }
static inline bool has_fast_transform(int64_t columns) {
  return columns == 1 || columns == 2 || columns == 4 || columns == 8 || columns == 16 || columns == 32 ||
         columns == 64;
}

// Operations of one real transform of `columns` values, forward or inverse.
static inline double transform_cost(int64_t columns) {
  double levels = 0;
  for (int64_t n = 1; n < columns; n *= 2) ++levels;
  const double w = static_cast<double>(columns);
  return has_fast_transform(columns) ? 1.5 * w * levels : 0.75 * w * w;
}

static inline AzimuthPlan forward_plan(const AzimuthMatchSize& n) {
  const double w = static_cast<double>(n.columns), k = static_cast<double>(n.values);
  const double pairs = static_cast<double>(n.batch) * static_cast<double>(n.references);
  const double items = static_cast<double>(n.batch + n.references);
  const double direct = pairs * w * static_cast<double>(n.query_columns) * k;
  const double products = static_cast<double>(4 * slots(n.columns) - 2) * k;
  const double spectral = pairs * (products + transform_cost(n.columns)) + items * k * transform_cost(n.columns);
  return direct <= spectral ? AzimuthPlan::kDirect : AzimuthPlan::kSpectral;
}

static inline AzimuthPlan backward_plan(const AzimuthMatchSize& n) {
  if (n.select == Selection::kGumbel) return AzimuthPlan::kSpectral;
  const double k = static_cast<double>(n.values);
  // Adding up windows is bound by its stores: half the rate of a product.
  const double scatter = 4.0 * static_cast<double>(n.query_columns) * k;
  const double spectral = 2.0 * static_cast<double>(4 * slots(n.columns) - 2) * k + transform_cost(n.columns);
  return scatter <= spectral ? AzimuthPlan::kScatter : AzimuthPlan::kSpectral;
}

// Bound of |computed - exact correlation| / (|query| |strip|): each of the K or w K products is rounded into a partial
// sum of at most kSumBlock values, the transforms add their own share (three of them in the spectral plan).
static inline double correlation_error(AzimuthPlan plan, int64_t values, int64_t query_columns, int64_t columns) {
  constexpr double kUnit = 1.0 / 16777216.0;
  const double block = static_cast<double>(min_of(values, kSumBlock));
  const double blocks = static_cast<double>(ceil_div(max_of(values, 1), kSumBlock));
  if (plan == AzimuthPlan::kDirect) return kUnit * (block + blocks * static_cast<double>(query_columns) + 4);
  double levels = 1;
  for (int64_t n = 1; n < columns; n *= 2) ++levels;
  const double transform = has_fast_transform(columns) ? 4 * levels : static_cast<double>(columns) + 4;
  return kUnit * (2 * block + blocks + 3 * transform + 4);
}

}  // namespace geoloc_fast::cpu
