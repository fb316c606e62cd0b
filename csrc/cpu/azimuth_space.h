// The work space of azimuth_match: who lies where, how large. Internal linkage, like azimuth_plan.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/azimuth_plan.h"

namespace geoloc_fast::cpu {

// Queries are packed in the order of their widths, strips in their own.
struct MatchSpace {
  int64_t distinct;     // D: distinct query widths there may be
  int64_t padded;       // K' = K to a multiple of 16
  int64_t lanes;        // R' = R to a multiple of kTile
  int64_t tiles;        // R' / kTile
  int64_t frequencies;  // F = ceil(W/2) slots
  int64_t query_rows;   // row length of a query on its way in: Wq to a multiple of 16
  int64_t strip_rows;   // of a strip: W to a multiple of 16
  int64_t query_slot;   // floats from slot to slot of query_spectra; one cache line more than they take, so that
  int64_t strip_slot;   // slots do not fall on the same lines of a cache
  int64_t weight_slot;
  int64_t strip_width;    // columns kept of a strip: W, and with "scatter" the first Wq again after the last
  int64_t gram_row;       // a row of `gram`: every column twice and some slack for unaligned reads
  int64_t scratch_bytes;  // one thread's

  int64_t* counter;       // the next task
  int32_t* order;         // [B] which query is packed i-th
  int32_t* width;         // [B] of the i-th packed query
  int32_t* width_index;   // [B] its place in `widths`
  int32_t* widths;        // [D] distinct widths, ascending
  int32_t* width_counts;  // [Wq + 2]
  int32_t* query_broken;  // [B]
  float* query_norm;      // [B] 1 / |packed query|, 0 for an empty one
  float* query_unit;      // [B]
  float* query_columns;   // [B, Wq, K']
  float* query_spectra;   // [F, B, 2, K']
  int32_t* strip_broken;  // [R'] -1 where broken
  float* strip_norm;      // [R'] |packed strip|
  float* strip_unit;      // [R']
  float* strip_columns;   // [R, strip_width, K']
  float* strip_tiles;     // forward: [tiles, F, K', 2, kTile] or, direct, [tiles, W, K', kTile]
  float* strip_spectra;   // backward: [F, R, 2, K']
  float* window_norm;     // [tiles, D, W, kTile] 1 / |packed window|, 0 for an empty one
  float* largest_norm;    // [tiles, D, kTile] over s
  float* gram;            // forward with slope: [R, W, gram_row]
  float* table;           // [2 W] of the transform
  float* weights;         // backward spectral: [F, B, 2, R']; scatter: [B, R']
  float* norm_weights;    // backward: [B, R'] g score / energy
  double* query_sum;      // backward: [B] sum_r g score
  double* scale_sum;      // backward: [B]
  char* scratch;          // [threads, scratch_bytes]
  int64_t bytes;
};

static inline MatchSpace match_space(const AzimuthMatchSize& n, AzimuthPlan plan, int threads, void* base) {
  MatchSpace space{};
  WorkSpace work(base);
  const int64_t b = n.batch, r = n.references, w = n.columns, wq = n.query_columns;
  const bool spectral = plan == AzimuthPlan::kSpectral;
  space.distinct = n.mixed_widths ? min_of(b, wq + 1) : 1;
  space.padded = round_up(n.values, 16);
  space.lanes = round_up(r, kTile);
  space.tiles = space.lanes / kTile;
  space.frequencies = slots(w);
  space.query_rows = round_up(wq, 16);
  space.strip_rows = round_up(w, 16);
  space.query_slot = b * 2 * space.padded + 16;
  space.strip_slot = r * 2 * space.padded + 16;
  space.weight_slot = b * 2 * space.lanes + 48;
  space.strip_width = plan == AzimuthPlan::kScatter ? w + wq : w;
  space.gram_row = round_up(2 * w, 16) + 16;
  const int64_t f = space.frequencies, k = space.padded;

  space.counter = work.take<int64_t>(1);
  space.order = work.take<int32_t>(b);
  space.width = work.take<int32_t>(b);
  space.width_index = work.take<int32_t>(b);
  space.widths = work.take<int32_t>(wq + 1);
  space.width_counts = work.take<int32_t>(wq + 2);
  space.query_broken = work.take<int32_t>(b);
  space.query_norm = work.take<float>(b);
  space.query_unit = work.take<float>(b);
  space.query_columns = work.take<float>(b * wq * k);
  space.strip_broken = work.take<int32_t>(space.lanes);
  space.strip_norm = work.take<float>(space.lanes);
  space.strip_unit = work.take<float>(space.lanes);
  space.strip_columns = work.take<float>(r * space.strip_width * k);
  space.window_norm = work.take<float>(space.lanes * space.distinct * w);
  space.largest_norm = work.take<float>(space.lanes * space.distinct);
  if (spectral) {
    space.query_spectra = work.take<float>(f * space.query_slot);
    space.table = work.take<float>(2 * w);
  }
  // Packing a strip or a query: its rows, column and window energies, a tile of spectra.
  int64_t scratch = 4 * k * (space.strip_rows + space.query_rows) + 2 * 8 * round_up(w, 8);
  if (n.backward) {
    space.norm_weights = work.take<float>(b * space.lanes);
    space.query_sum = work.take<double>(b);
    space.scale_sum = work.take<double>(b);
    int64_t gradient;
    if (spectral) {
      space.strip_spectra = work.take<float>(f * space.strip_slot);
      space.weights = work.take<float>(f * space.weight_slot);
      // A block of the gradient as spectrum, one row of it as columns, one side of a product put in order.
      gradient = f * kRowBlock * 2 * kValueBlock + w * kValueBlock + 2 * kOrderedRow * kReduceBlock;
      scratch = max_of(scratch, 4 * 16 * w);
    } else {
      space.weights = work.take<float>(b * space.lanes);
      gradient = kScatterBlock * space.strip_width * k + b + w + 1;  // and an order of the queries
    }
    // And what the norm of the windows takes off each column, by shift and by column.
    scratch = max_of(scratch, 4 * (gradient + kRowBlock * (space.gram_row + w) + 64));
  } else {
    space.strip_tiles = work.take<float>(space.lanes * k * (spectral ? 2 * f : w));
    if (n.slope) space.gram = work.take<float>(r * w * space.gram_row);
    if (spectral) scratch += 4 * kTile * 2 * f * k;
    // Matching a tile: products, then correlations, logits, noise, Gram rows of 16 pairs, Gram windows of the tile.
    int64_t match = 4 * (kQueryBlock * kTile * max_of(2 * f, w) + 4 * 16 * space.strip_rows);
    if (n.slope) match += 4 * kTile * w * space.strip_rows;
    scratch = max_of(scratch, match);
  }
  space.scratch_bytes = round_up(scratch, 64) + 512;  // pieces begin on cache lines
  space.scratch = work.take<char>(space.scratch_bytes * max_of(threads, 1));
  space.bytes = work.bytes();
  return space;
}

}  // namespace geoloc_fast::cpu
