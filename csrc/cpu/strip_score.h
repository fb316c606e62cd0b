// The pieces of strip_score that strip_topk rescores with. Their kernels are compiled without contraction.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/isa.h"
#include "geoloc_fast/strip_score.h"

namespace geoloc_fast::cpu {

// A query ready to be scored: only the columns that exist, in float64.
struct ExactQuery {
  const double* values;  // [K rounded up to kStripScoreChunk][width], 0 beyond K
  int64_t width;
  double energy;  // not finite: the query holds NaN or Inf
};

struct ExactScore {
  float score;
  int32_t shift;
};

constexpr int64_t kStripScoreChunk = 32;

// Doubles of memory: for the values of one query, and to score one pair.
constexpr int64_t exact_query_doubles(int64_t values, int64_t width) {
  return (values + kStripScoreChunk - 1) / kStripScoreChunk * kStripScoreChunk * width;
}
constexpr int64_t exact_score_doubles(int64_t columns) {
  return kStripScoreChunk * (columns + 2 * strip_padded(columns)) + 5 * strip_padded(columns);
}

GEOLOC_FAST_DECLARE_KERNEL(ExactQuery, strip_query_prepare,
                           (const float* query, int64_t values, int64_t padded_width, int64_t width, double* memory))
GEOLOC_FAST_DECLARE_KERNEL(ExactScore, strip_score_pair,
                           (const StripBankView& bank, const StripBasis& basis, const ExactQuery& query, bool cosine,
                            int64_t row, double* scratch))

}  // namespace geoloc_fast::cpu
