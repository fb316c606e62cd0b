// strip_score: the one routine that decides how well a query fits a stored strip, and at which shift.
// SPDX-License-Identifier: Apache-2.0
//
//   S = the stored strip, decoded to float32 columns (exactly what strip_unpack returns)
//   correlation[s] = sum_c sum_{x<w} q[c, x] S[c, (s + x) mod W]          the query lies over columns s .. s+w-1
//   energy[s]      = sum_c sum_{x<w} S[c, (s + x) mod W]^2
//   cosine[s]      = correlation[s] / sqrt(|q|^2 energy[s]), and 0 where energy[s] <= 1e-6 |S|^2 or q is 0
//   shift = first maximum of correlation ("correlation") or of cosine ("cosine");  score = cosine[shift]
//
// With `dot`, correlation decides and is the score: shift = first maximum of correlation, score = correlation[shift].
// With `curve` (strip_curve), cosine[s] of every shift is the answer.
//
// An index of -1 scores -inf at shift -1, its curve is -inf throughout. NaN or Inf in the strip, or in the columns of
// the query that exist, scores NaN at shift 0, its curve is NaN throughout.
//
// Numerics: float64 sums in a fixed order over float32 values, no contraction, one rounding to float32 at the
// end. Every instruction set gives the same bits, equal strips get equal scores, and a strip that repeats along
// azimuth ties exactly, so that its first shift wins. A pair costs a fast
// transform of the strip and K W w multiply-adds.
#pragma once
#include "geoloc_fast/strip_bank.h"

namespace geoloc_fast {

struct StripScoreParams {
  StripBankView bank;
  const float* query;    // [batch][K][padded_width], contiguous
  const int64_t* width;  // [batch], each from 1 to padded_width; null: all are padded_width
  int64_t batch, padded_width;
  bool cosine;           // select="cosine"
  bool dot;              // score="dot", whatever `cosine` says
  const int64_t* index;  // [batch][n], each from -1 to count-1
  int64_t n;
  float* score;          // [batch][n]
  int64_t* shift;        // [batch][n]
  float* curve;          // [batch][n][W], in place of score and shift; null: those
  const double* circle;  // see strip_bank.h
  void* workspace;       // strip_score_workspace bytes, aligned to 64
};

namespace cpu {
// kBadSize, with nothing read, if an index or a width is out of range.
Status strip_score(const StripScoreParams& params, int threads);
int64_t strip_score_workspace(int64_t batch, int64_t values, int64_t columns, int64_t padded_width, int threads);
}  // namespace cpu

namespace cuda {
// The same bits, launched on `stream` of `device`. An index outside the bank scores NaN at shift -1, a width outside
// its range is taken as the nearest one inside.
Status strip_score(const StripScoreParams& params, int device, void* stream);
int64_t strip_score_workspace(const StripBankView& bank, int64_t batch, int64_t n);
}  // namespace cuda

}  // namespace geoloc_fast
