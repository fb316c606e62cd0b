// How strip_topk searches on a GPU: pure functions of its shape, testable without one.
// SPDX-License-Identifier: Apache-2.0
//
// Queries stand in tiles of 8 of one width. A block of threads holds the operands of `tiles_across` warps' tiles in
// shared memory for as long as it lives and streams `blocks_deep` blocks of the bank past them: a warp works on one
// block of 16 strips and one tile (W = 16) or up to 8 tiles (W = 1).
//
// W = 16, "spectral16": 30 mma a 16 channels give all 16 planes of 16 x 8 correlations: 64 accumulators a lane, 4
//   pairs with all their frequencies. Inverse transform, norms, bounds and the test happen there.
//   A pair costs 1920 multiply-adds on the tensor cores and 384 bytes out of shared memory (K = 64), which is what
//   bounds it: 29.6 TB/s on an H200 make 77 G pairs/s. One query reads 2112 bytes a strip: 2.0 G strips/s at 4.3 TB/s.
// W = 1, "flat": no transform, 4 accumulators a tile. With more than 8 queries a warp keeps 8 tiles: 160 bytes out of
//   shared memory a pair at K = 1024, 185 G pairs/s. One query is bound by memory: 2.1 G strips/s.
// Any other W, and any K whose operands do not fit, "exact": every pair by strip_score's routine, K W w float64
//   multiply-adds. W = 64 belongs here too: its 256 accumulators a lane fit no warp, so the frequencies would have to
//   be split over four warps and meet again in shared memory (512 bytes a pair there and back, 14 G pairs/s).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/strip_exact_heuristics.h"
#include "geoloc_fast/strip_topk.h"

namespace geoloc_fast::cuda {

constexpr int kTileQueries = 8;
constexpr int kStages = 6;       // of the ring the bank streams through
constexpr int kFlatWords = 32;   // of a row of a block, at a time, for W = 1
constexpr int kScreenWarps = 8;  // most warps of a block
constexpr int64_t kListBytes = 256 << 20;
constexpr float kScreenSlack = 64.0f / 16777216.0f;

// A pair that may belong to the answer.
struct Kept {
  int64_t row;
  float lower, upper;  // of its score
  int32_t shift;
  int32_t scored;  // lower == upper is the score
};
static_assert(sizeof(Kept) == 24, "");

enum class TopkForm { kExact, kSpectral16, kFlat };

struct TopkPlan {
  TopkForm form;
  int64_t tiles;       // at most this many, whatever the widths are
  int tiles_a_warp;    // 1 or 8
  int tiles_across;    // warps of a block with different tiles
  int blocks_deep;     // warps of a block with different blocks of the bank
  int64_t steps;       // 8 words each: k of an mma
  int64_t unit_bytes;  // of the ring, for one block of the bank
  int64_t shared;      // bytes
  int64_t grid_x, grid_y;
  int64_t slots;  // lists of a query
  int64_t list;   // kept pairs of a list
  float epsilon;  // the bound without the rounding of the query
};

// |c[s] - exact| <= epsilon |S| for a query of norm 1 before its rounding. As in strip_topk.h, with these products:
//   a tensor core adds the exact products of an mma to the accumulator with an error below
//   (products + 2) 2^-23 of the sum of their magnitudes, however it aligns and truncates them; the accumulator of a
//   frequency takes two mma a step, and the sums of magnitudes over channels are at most |Q_f| |S_f|;
//   tf32 drops the last 13 bits of a stored float32: 2^-10 |Q_f| |S_f|.
inline double screening_epsilon(int64_t steps, int64_t columns, bool bf16) {
  const double products = bf16 ? 16 : 8;
  const double sums = 2.0 * (2.0 * static_cast<double>(steps)) * (products + 2) * 0x1p-23;
  int64_t levels = 0;
  while ((int64_t{1} << levels) < columns) ++levels;
  const double n = static_cast<double>(8 * (levels + 1) + 2 + 8);
  return 1.1 * (sums + 4 * n / (16777216.0 - n) + (bf16 ? 0.0 : 0x1p-10));
}

// Bytes of the shared memory of a block; laid out in strip_topk.cuh.
inline int64_t screen_shared(const TopkPlan& plan, int64_t columns) {
  const int64_t tiles = plan.tiles_a_warp * plan.tiles_across, warps = plan.tiles_across * plan.blocks_deep;
  return tiles * columns * plan.steps * 256 + kStages * plan.blocks_deep * plan.unit_bytes +
         warps * (columns * kStripLanes * 4 + plan.tiles_a_warp * kTileQueries * 8);
}

inline TopkPlan strip_topk_plan(const StripTopkParams& p, const DeviceLimits& limits) {
  const int multiprocessors = limits.multiprocessors;
  const StripBankView& bank = p.bank;
  TopkPlan plan{};
  const int64_t widths = p.width ? std::min(p.padded_width, p.batch) : 1;
  plan.tiles = std::min((p.batch + kTileQueries - 1) / kTileQueries + widths - 1, p.batch);
  plan.steps = (bank.words + 7) / 8;
  plan.list = 2 * p.k + 64;
  plan.epsilon = static_cast<float>(screening_epsilon(plan.steps, bank.columns, bank.bf16));
  const int64_t blocks = (bank.count + kStripLanes - 1) / kStripLanes;
  if (bank.columns == 16 || bank.columns == 1) {
    plan.unit_bytes =
        bank.columns == 1 ? 64 * (kFlatWords + 1) : 64 * std::max(2 * bank.words, bank.words + bank.columns);
    plan.tiles_a_warp = bank.columns == 1 && plan.tiles > 1 ? 8 : 1;
    int across = 1;
    while (plan.tiles_a_warp == 1 && across < kScreenWarps && across < plan.tiles) across *= 2;
    for (; across >= 1 && plan.form == TopkForm::kExact; across /= 2)
      for (int deep = kScreenWarps / across; deep >= 1; deep /= 2) {
        plan.tiles_across = across, plan.blocks_deep = deep;
        plan.shared = screen_shared(plan, bank.columns);
        if (plan.shared > limits.shared_bytes) continue;
        plan.form = bank.columns == 1 ? TopkForm::kFlat : TopkForm::kSpectral16;
        break;
      }
  }
  const int64_t most_slots = std::max<int64_t>(
      1, kListBytes / (int64_t{sizeof(Kept)} * plan.list * kTileQueries * std::max<int64_t>(plan.tiles, 1)));
  if (plan.form == TopkForm::kExact) {
    plan.slots = std::min({most_slots, int64_t{8} * multiprocessors, std::max<int64_t>(bank.count, 1)});
    plan.grid_x = (plan.slots + kExactWarps - 1) / kExactWarps;
    plan.grid_y = std::min<int64_t>(std::max<int64_t>(1, 8 * multiprocessors / (plan.grid_x * kExactWarps)), p.batch);
    return plan;
  }
  const int64_t groups_tiles = plan.tiles_a_warp * plan.tiles_across;
  const int64_t groups = (plan.tiles + groups_tiles - 1) / groups_tiles;
  plan.grid_x = std::min({int64_t{multiprocessors}, (blocks + plan.blocks_deep - 1) / plan.blocks_deep,
                          std::max<int64_t>(1, most_slots / plan.blocks_deep)});
  plan.grid_x = std::max<int64_t>(plan.grid_x, 1);
  plan.grid_y = std::min(groups, (multiprocessors + plan.grid_x - 1) / plan.grid_x);
  plan.slots = plan.grid_x * plan.blocks_deep;
  return plan;
}

inline const char* form_name(TopkForm form) {
  return form == TopkForm::kSpectral16 ? "spectral16" : form == TopkForm::kFlat ? "flat" : "exact";
}

}  // namespace geoloc_fast::cuda
