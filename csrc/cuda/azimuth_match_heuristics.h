// How azimuth_match runs on a GPU: plan, tiles, splits and work space, as pure functions of the sizes, so that the
// same sizes give the same sums on every device.
// SPDX-License-Identifier: Apache-2.0
//
// Notation of geoloc_fast/azimuth_match.h. Rates of an H200: 60 TFLOP/s in fp32, 4.3 TB/s copied, about 5.5 TB/s from
// L2. A pair costs, in fp32 multiply-adds,
//
//   spectral  (2 W - 2) K forward, twice that backward     W = 16, K = 64: 1.9 k and 3.8 k; W = 64: 8.1 k and 16.1 k
//   direct    W Wq K forward                               W = 16: 5.1 k (Wq = 5), 16.4 k (Wq = 16)
//
// and 12 bytes of score and shift; with "gumbel" 4 W of noise read, 4 W of slopes written and 4 more.
//
// Why plain fp32 and not tensor cores. A score is promised to 1e-6 of the float64 one, and a shift within the error
// bound is summed again: a product in one bf16 is off by 4e-3, in two by 1e-5, in three (six products) by 1e-7; tf32 in
// two (three products) by 1e-6. The products of B = R = 1024, W = 16, K = 64 are 4.1 GFLOP: 70 us at the fp32 rate;
// with three tf32 products at half the bf16 rate (300 TFLOP/s) 41 us, and with six bf16 ones (600 TFLOP/s) 41 us. The
// memory takes 35 us and the epilogue (inverse transform, maximum, softmax, slopes: some 800 instructions a pair) 30 us
// of the same issue slots. So a third of the pass at best is to be won, for operands of two or three times the size,
// and the rest is where it was; fp32 gives the last bits instead. W = 64: 17 GFLOP, 290 us, memory 130 us: a factor
// below two. The rolled form on tensor cores has 8 (Wq = 16) times the products of the spectral one: no gain at any
// split.
//
// Floors in us, the larger of multiply-adds and memory, for "gumbel" and K = 64 (a launch costs 2 to 3 us besides; 6
// launches forward, 14 backward):
//
//   B = R     W     forward   backward: products, weights written and read twice (2 x 8 W a pair), slopes read twice
//   128      16       1.1        2.1 + 1.6
//   256      16       4.2        8.4 + 6
//   1024     16        67        134 + 100
//   1024     64       280        560 + 390
//
// Predicted, not yet measured: the first run is to be held against twice these.
#pragma once
#include "common/host_device.h"
#include "common/work_space.h"
#include "geoloc_fast/azimuth_match.h"

namespace geoloc_fast::cuda {

constexpr int kTile = 32;                           // items side by side in a packed operand: one bank each
constexpr int kMaxWarps = 8;                        // of a block of the product
constexpr int kTermBlock = 128;                     // terms of a sum before the partial sum is put away
constexpr int kTermAlign = 8;                       // packed operands hold a multiple of these, zeros at the end
constexpr int64_t kSharedLimit = 160 << 10;         // bytes a block may have on the smallest GPU we tune for (sm_80)
constexpr int64_t kGlobalBlocks = 264;              // blocks at once where products do not fit into shared memory
constexpr int64_t kGlobalBytes = int64_t{1} << 28;  // and what their products may take
constexpr int64_t kSumUnits = 2048;                 // products of 32 x 32 numbers, a warp each, that keep a GPU busy

GEOLOC_FAST_HD constexpr int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }
GEOLOC_FAST_HD constexpr int64_t round_up(int64_t value, int64_t by) { return ceil_div(value, by) * by; }
GEOLOC_FAST_HD constexpr int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
GEOLOC_FAST_HD constexpr int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

// Values of an item as an operand holds them: zeros at the end, and never none.
GEOLOC_FAST_HD constexpr int64_t padded_values(int64_t values) { return round_up(max_of(values, 1), kTermAlign); }

// Lengths with a transform in registers.
GEOLOC_FAST_HD constexpr bool has_transform(int64_t columns) {
  return columns == 4 || columns == 8 || columns == 16 || columns == 32 || columns == 64;
}

// Products per frequency wherever there is a transform: even for one-column queries the direct product of a column is
// bound by what it reads from shared memory, and the direct gradient, a thread a number of it, by its instructions.
inline AzimuthPlan choose_match_plan(const AzimuthMatchSize& n) {
  if (has_transform(n.columns)) return AzimuthPlan::kSpectral;
  return n.backward ? AzimuthPlan::kScatter : AzimuthPlan::kDirect;
}

// A block makes `kTile` x `strips` pairs: a warp the products of one slot (frequency or, in the direct plan, shift)
// after another, all threads then the pairs.
struct MatchLaunch {
  int slots;      // products: frequencies, or shifts
  int warps;      // of a block
  int strips;     // of a block: 32, or 16 where a pair's products are long
  int depth;      // terms in a stage of the pipeline
  int64_t terms;  // of a product
  bool overlay;   // products replace the stages in shared memory
  bool global;    // products are in the work space, too large for shared memory
  int64_t products_bytes, shared_bytes, tiles, blocks;
};

inline MatchLaunch match_launch(const AzimuthMatchSize& n, AzimuthPlan plan) {
  MatchLaunch it{};
  const bool spectral = plan == AzimuthPlan::kSpectral;
  const int parts = spectral ? 2 : 1;
  const int64_t padded = padded_values(n.values), slots = spectral ? n.columns / 2 : n.columns;
  it.slots = static_cast<int>(slots);
  it.warps = static_cast<int>(min_of(slots, kMaxWarps));
  it.strips = spectral && n.columns <= 16 ? 32 : 16;
  it.depth = it.strips == 32 ? 8 : 4;
  it.terms = spectral ? padded : n.query_columns * padded;
  const int64_t stages = int64_t{2} * it.warps * it.depth * parts * (kTile + it.strips) * 4;
  it.products_bytes = int64_t{kTile} * it.strips * n.columns * 4;
  it.overlay = slots <= it.warps && it.terms <= kTermBlock;
  it.global = stages + it.products_bytes > kSharedLimit;
  it.shared_bytes = it.global ? stages : it.overlay ? max_of(stages, it.products_bytes) : stages + it.products_bytes;
  if (it.global) it.overlay = false;
  it.tiles = ceil_div(n.batch, kTile) * ceil_div(n.references, it.strips);
  it.blocks = it.tiles;
  if (it.global) it.blocks = min_of(it.tiles, max_of(1, min_of(kGlobalBlocks, kGlobalBytes / it.products_bytes)));
  return it;
}

// The sums of a gradient: rows (queries, or strips) x values for every frequency, over the other side in pieces.
struct GradientLaunch {
  int slots, value_tiles;
  int64_t row_tiles, terms, splits, terms_per_split;  // the latter a multiple of kTermAlign
};

inline GradientLaunch gradient_launch(const AzimuthMatchSize& n, bool of_query) {
  GradientLaunch it{};
  it.slots = static_cast<int>(n.columns / 2);
  it.value_tiles = static_cast<int>(ceil_div(n.values, kTile));
  it.row_tiles = ceil_div(of_query ? n.batch : n.references, kTile);
  it.terms = round_up(of_query ? n.references : n.batch, kTermAlign);
  const int64_t units = max_of(1, it.slots * it.value_tiles * it.row_tiles);
  const int64_t wanted = max_of(1, min_of(kSumUnits / units, ceil_div(it.terms, 64)));
  it.terms_per_split = round_up(max_of(1, ceil_div(it.terms, wanted)), kTermAlign);
  it.splits = max_of(1, ceil_div(it.terms, it.terms_per_split));
  return it;
}

// Pieces of the batch whose norm shares are added up apart.
inline int64_t share_splits(const AzimuthMatchSize& n) {
  return max_of(1, min_of(ceil_div(n.batch, 32), ceil_div(1024, ceil_div(n.references, kTile))));
}

// What is known of an item after one look at it: value = unit * packed value, the largest packed one in [1, 2).
struct ItemFacts {
  float* inverse;      // 1 / unit; [items to a multiple of kTile], like the others
  float* unit;         // a power of two
  float* norm;         // |packed item|
  int32_t* broken;     // holds NaN or Inf: packed as zeros
  double* column_sum;  // [items][columns + 1] energies of the columns before; packed; strips only
};

inline ItemFacts take_facts(WorkSpace& work, int64_t items, int64_t columns) {
  ItemFacts facts{};
  const int64_t padded = round_up(items, kTile);
  facts.inverse = work.take<float>(padded);
  facts.unit = work.take<float>(padded);
  facts.norm = work.take<float>(padded);
  facts.broken = work.take<int32_t>(padded);
  facts.column_sum = columns == 0 ? nullptr : work.take<double>(items * (columns + 1));
  return facts;
}

// Operands lie as [tile of 32][slot][term][part][32]: a piece of a stage is contiguous in memory, and four neighbours
// are one shared-memory load. Parts are the two numbers of a frequency; the direct plan has one, and its terms are
// [column][value], so that a strip moved by a shift begins that many columns further on.
struct MatchSpace {
  ItemFacts query, strips;
  float* query_tiles;  // spectral [B/32][W/2][K'][2][32], direct [B/32][Wq][K'][32]
  float* strip_tiles;  // spectral [R/32][W/2][K'][2][32], direct [R/32][W + Wq - 1][K'][32]
  double* gram;        // [R][W + 1][W]: sums over a' < a of <column a', column a' + d>; for slopes
  float* products;     // [blocks][W][32][strips] where they do not fit into shared memory
  int64_t bytes;
};

inline MatchSpace match_space(const AzimuthMatchSize& n, AzimuthPlan plan, void* base) {
  MatchSpace space{};
  WorkSpace work(base);
  const MatchLaunch launch = match_launch(n, plan);
  const bool spectral = plan == AzimuthPlan::kSpectral;
  const int64_t padded = padded_values(n.values);
  const int64_t queries = round_up(n.batch, kTile), strips = round_up(n.references, kTile);
  space.query = take_facts(work, n.batch, 0);
  space.strips = take_facts(work, n.references, n.columns);
  space.query_tiles = work.take<float>(queries * padded * (spectral ? n.columns : n.query_columns));
  space.strip_tiles = work.take<float>(strips * padded * (spectral ? n.columns : n.columns + n.query_columns - 1));
  space.gram = n.slope ? work.take<double>(n.references * (n.columns + 1) * n.columns) : nullptr;
  space.products = launch.global ? work.take<float>(launch.blocks * launch.products_bytes / 4) : nullptr;
  space.bytes = work.bytes();
  return space;
}

struct GradientSpace {
  ItemFacts query, strips;
  float* hard;          // [B, R] weight of the chosen window
  float* soft;          // [B, R] weight of a slope; "gumbel"
  float* taken;         // [B, R] what the chosen window's norm takes
  double* query_sum;    // [B] sum_r g score
  double* scale_sum;    // [B] sum_r g d score / d scale
  float* shares;        // [splits][R][W] what the norms take off each column
  float* query_values;  // spectral: [K/32][W/2][B'][2][32]
  float* strip_values;  // spectral: [K/32][W/2][R'][2][32]
  float* weights;       // spectral: [rows/32][W/2][terms][2][32], of one gradient and then of the other
  float* sums;          // spectral: [splits][W][rows][K'], likewise
  int64_t bytes;
};

inline GradientSpace gradient_space(const AzimuthMatchSize& n, AzimuthPlan plan, void* base) {
  GradientSpace space{};
  WorkSpace work(base);
  const int64_t pairs = n.batch * n.references;
  space.query = take_facts(work, n.batch, 0);
  space.strips = take_facts(work, n.references, n.columns);
  space.hard = work.take<float>(pairs);
  space.soft = n.select == Selection::kGumbel ? work.take<float>(pairs) : nullptr;
  space.taken = work.take<float>(pairs);
  space.query_sum = work.take<double>(n.batch);
  space.scale_sum = work.take<double>(n.batch);
  space.shares = work.take<float>(share_splits(n) * n.references * n.columns);
  if (plan == AzimuthPlan::kSpectral) {
    const int64_t values = round_up(n.values, kTile) * n.columns;
    const GradientLaunch q = gradient_launch(n, true), s = gradient_launch(n, false);
    space.query_values = work.take<float>(values * s.terms);
    space.strip_values = work.take<float>(values * q.terms);
    space.weights = work.take<float>(max_of(q.row_tiles * kTile * q.terms, s.row_tiles * kTile * s.terms) * n.columns);
    space.sums = work.take<float>(values * kTile * max_of(q.splits * q.row_tiles, s.splits * s.row_tiles));
  }
  space.bytes = work.bytes();
  return space;
}

}  // namespace geoloc_fast::cuda
