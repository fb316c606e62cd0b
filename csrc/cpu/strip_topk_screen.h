// What strip_topk.cpp (queries in, lists of kept pairs, the answer) and its screening kernels share.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/isa.h"
#include "cpu/strip_score.h"
#include "cpu/strip_topk_plan.h"
#include "geoloc_fast/strip_topk.h"

namespace geoloc_fast::cpu {

// A query of the pass in progress. Queries of a pass are sorted by width and cut into tiles.
struct ScreenQuery {
  const float* values;  // [K][padded_width]
  int64_t width;
  double energy;
  float epsilon;  // |c[s] - exact| <= epsilon |S| for the query scaled to norm 1; 0 for a query of zeros
  float slack;    // kScoreSlack; 0 for a query of zeros and with `dot`, but infinite where the bound does not hold
  float gain;     // of the scaled query's scores: 1, with `dot` the query's norm
};

// Pairs of one query and one block whose upper bound may reach the threshold.
struct ScreenHits {
  int64_t query;  // of the pass
  int64_t block;
  uint32_t lanes;
  float lower[kStripLanes], upper[kStripLanes];
  int32_t shift[kStripLanes];  // the only one that can be chosen, or kAnyShift
};

struct ScreenJob {
  StripBankView bank;
  const double* circle;       // see strip_bank.h
  const float* float_circle;  // rounded; only where there is no fixed inverse
  int64_t padded_width;
  bool cosine;  // select="cosine", or `dot`
  bool dot;
  const bool* alive;
  Products products;
  float epsilon;
  ScreenQuery* queries;
  int64_t pass;        // most queries of a pass
  int64_t live;        // queries of this pass
  uint32_t* operands;  // [live][operand_words], tile by tile
  int64_t operand_words;
  void* owner;  // for `keep`
  void (*keep)(void* owner, int slot, const ScreenHits& hits);
};

// How many queries stand in the tile that begins at query `first` of `live`.
GEOLOC_FAST_DECLARE_KERNEL(int64_t, strip_topk_tile, (Products products, int64_t columns, int64_t first, int64_t live))
// Bytes of scratch a slot needs, a multiple of 64.
GEOLOC_FAST_DECLARE_KERNEL(int64_t, strip_topk_scratch, (int64_t columns, int64_t pass))
// Fills the operands and the bound of query `i`, member `i - first` of a tile of `tile` queries that begins at `first`.
GEOLOC_FAST_DECLARE_KERNEL(void, strip_topk_operands,
                           (const ScreenJob& job, int64_t i, int64_t first, int64_t tile, void* scratch))
// Screens blocks [begin, end) against every query of the pass. `threshold` [live] may rise during the call.
GEOLOC_FAST_DECLARE_KERNEL(void, strip_topk_screen,
                           (const ScreenJob& job, int slot, int64_t begin, int64_t end, const float* threshold,
                            void* scratch))

}  // namespace geoloc_fast::cpu
