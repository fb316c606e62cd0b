// The pieces of strip_score that strip_topk rescores with. Their kernels are compiled without contraction.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/isa.h"
#include "geoloc_fast/strip_score.h"

namespace geoloc_fast::cpu {

// A query ready to be scored: only the columns that exist, in float64, vectors of 8 channels.
struct ExactQuery {
  const double* values;  // [K / 8 rounded up][width][8], 0 beyond K
  int64_t width;
  double energy;  // not finite: the query holds NaN or Inf
};

// Whose first maximum is the shift. The score is the cosine there, with kDot the correlation.
enum class Decides : int { kCorrelation, kCosine, kDot };
constexpr Decides decides(bool cosine, bool dot) {
  return dot ? Decides::kDot : cosine ? Decides::kCosine : Decides::kCorrelation;
}

struct ExactScore {
  float score;
  int32_t shift;
};

constexpr int32_t kAnyShift = -1;

// Doubles of memory for the values of one query.
constexpr int64_t exact_query_doubles(int64_t values, int64_t width) { return (values + 7) / 8 * 8 * width; }

GEOLOC_FAST_DECLARE_KERNEL(ExactQuery, strip_query_prepare,
                           (const float* query, int64_t values, int64_t padded_width, int64_t width, double* memory))
// Bytes of memory to score one pair, a multiple of 64.
GEOLOC_FAST_DECLARE_KERNEL(int64_t, strip_score_scratch, (int64_t columns))
// With `known_shift`, the caller knows that strip_score chooses this shift, and the others are not computed. With
// `curve` [W], the cosine at every shift is written there instead.
GEOLOC_FAST_DECLARE_KERNEL(ExactScore, strip_score_pair,
                           (const StripBankView& bank, const double* circle, const ExactQuery& query, Decides decides,
                            int64_t row, int32_t known_shift, float* curve, void* scratch))

}  // namespace geoloc_fast::cpu
