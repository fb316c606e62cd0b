// How strip_topk searches on a GPU: pure functions of its shape, testable without one.
// SPDX-License-Identifier: Apache-2.0
//
// Queries stand in tiles of 8 of one width. A block of threads holds the operands of `tiles_across` tiles (W = 1: eight
// times as many) in shared memory for as long as it lives and streams `blocks_deep` blocks of the bank past them. The
// figures are those of K = 64 in bf16 (W = 1: K = 1024) on an H200: 29.6 TB/s of shared memory, 4.3 of memory, 5.5
// assumed of L2.
//
// W = 16, "spectral16": a warp works on one block of 16 strips and one tile. 30 mma a 16 channels give all 16 planes of
//   16 x 8 correlations: 64 accumulators a lane, 4 pairs with all their frequencies. Inverse transform, norms, bounds
//   and the test happen there. A pair costs 1920 multiply-adds on the tensor cores and 384 bytes out of shared memory,
//   77 G pairs/s; with the words of a plane written out a warp issues some 1,600 instructions for 128 pairs, which
//   bounds it: 74 G pairs/s. One query reads 2112 bytes a strip: 2.0 G strips/s.
// W = 64, "spectral64": all 64 planes would be 256 accumulators a lane. So two warps work on a block of strips and a
// tile,
//   one with the 32 planes of the even frequencies, which give e[s] of period 32, the other with those of the odd ones,
//   which give o[s + 32] = -o[s]: 128 accumulators each. Each transforms its half, they trade, and each has
//   c[s] = e[s] + o[s], c[s + 32] = e[s] - o[s] of half the pairs, to finish as for W = 16.
//   A pair costs 8064 multiply-adds; out of and into shared memory 1024 bytes of strips, 512 of operands, 528 to fill
//   the ring, 256 of trade, 64 of norms: 12.4 G pairs/s. Operands (64 KiB a tile) leave room for two tiles, so a
//   strip's 8448 bytes come to a multiprocessor once for 16 queries: 10.4 G pairs/s by L2, which is what bounds many
//   queries. One query is bound by memory: 0.5 G strips/s. In fp32 one tile and one block of strips fit: 2.6 G pairs/s.
//   Thought through and left: four passes, one for every fourth shift, with the frequencies folded into the operands
//   (nothing to trade, but four times the multiply-adds, 9 G pairs/s by the tensor cores, and four times the operands);
//   the inverse as an mma with the Fourier matrix (4096 multiply-adds more, its rounding on top of the bound, and the
//   planes of a pair first to be laid out across lanes: 512 bytes); four warps of a quarter each and two tiles a warp
//   (384 bytes of shared memory less, the same bytes from L2); strips that stay and queries that stream (640 bytes
//   from L2 a pair at 64 queries).
// W = 1, "flat": no transform, 4 accumulators a tile. With more than 8 queries a warp keeps 8 tiles: 160 bytes out of
//   shared memory a pair, 185 G pairs/s. One query is bound by memory: 2.1 G strips/s.
// Any other W, and any K whose operands do not fit: not here. Triton takes those.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cuda/strip_exact_heuristics.h"
#include "geoloc_fast/strip_topk.h"

namespace geoloc_fast::cuda {

constexpr int kTileQueries = 8;
constexpr int kUsualWords = 32;  // of a plane: K = 64 in bf16, for which the screening of W > 1 is written out
constexpr int kFlatWords = 32;   // of a row of a block, at a time, for W = 1
constexpr int kScreenWarps = 8;  // most warps of a block
constexpr int64_t kListBytes = 256 << 20;
constexpr float kScreenSlack = 64.0f / 16777216.0f;

// Warps that share a tile, each with half the frequencies.
constexpr int screen_split(int64_t columns) { return columns == 64 ? 2 : 1; }
// Of the ring the bank streams through.
constexpr int screen_stages(int64_t columns) { return columns == 64 ? 3 : 6; }
// Where byte `at` of what the ring holds at a time lies there: a line of 64 bytes whose number has bit 1 set has its
// halves swapped. The 16 lanes that an 8-byte load serves together want half of each of 4 lines, and so find every bank
// once.
constexpr int in_ring(int at) { return at ^ (at >> 2 & 32); }
// Floats from one row of norms to the next: four of a row at once, and the banks of eight rows all different.
constexpr int norm_pitch(int64_t columns) { return static_cast<int>(columns == 1 ? 1 : columns + 4); }
// Shared floats of a warp: the norms of its rows, and what it gives to the warp with the other half of the frequencies,
// one pair of each lane at a time.
constexpr int norm_floats(int64_t columns) { return kStripLanes / screen_split(columns) * norm_pitch(columns); }
constexpr int desk_floats(int64_t columns) {
  return screen_split(columns) == 1 ? 0 : static_cast<int>(32 * columns / 2);
}

// A pair that may belong to the answer.
struct Kept {
  int64_t row;
  float lower, upper;  // of its score
  int32_t shift;
  int16_t scored;  // lower == upper is the score
  int16_t head;    // with groups: no other of its group on the list has a better lower bound
};
static_assert(sizeof(Kept) == 24, "");

constexpr int64_t list_length(int64_t k) { return 2 * k + 64; }

enum class TopkForm { kNone, kSpectral, kFlat };

struct TopkPlan {
  TopkForm form;
  int64_t tiles;       // at most this many, whatever the widths are
  int tiles_a_warp;    // 1 or 8
  int tiles_across;    // groups of warps of a block with different tiles
  int blocks_deep;     // groups of warps of a block with different blocks of the bank
  int warps;           // of a block
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

// Bytes of the shared memory of a block; laid out in strip_topk_screen.cuh.
inline int64_t screen_shared(const TopkPlan& plan, int64_t columns) {
  return plan.tiles_a_warp * plan.tiles_across * columns * plan.steps * 256 +
         screen_stages(columns) * plan.blocks_deep * plan.unit_bytes +
         plan.warps * 4 * (norm_floats(columns) + desk_floats(columns) + 2 * plan.tiles_a_warp * kTileQueries);
}

// Lists that rows of one group may be on, if no group has more than `rows`.
inline constexpr int64_t lists_of_group(int64_t rows, int64_t columns) {
  return screen_split(columns) * ((rows + kStripLanes - 2) / kStripLanes + 1);
}

// Blocks of threads in both directions: x over the bank, y over groups of tiles. Groups side by side share what they
// read of the bank, which lies in L2 for all but the first of them; so as many of them as cost at most 5 % in balance.
inline void screen_grid(TopkPlan& plan, int64_t groups, int64_t pieces, int64_t most_x, int64_t multiprocessors) {
  auto blocks_x = [&](int64_t y) { return std::max<int64_t>(1, std::min({multiprocessors / y, pieces, most_x})); };
  auto turns = [&](int64_t y) { return (groups + y - 1) / y * ((pieces + blocks_x(y) - 1) / blocks_x(y)); };
  const int64_t most_y = std::max<int64_t>(1, std::min(groups, multiprocessors));
  int64_t least = turns(1);
  for (int64_t y = 2; y <= most_y; ++y) least = std::min(least, turns(y));
  plan.grid_y = most_y;
  while (plan.grid_y > 1 && 20 * turns(plan.grid_y) > 21 * least) --plan.grid_y;
  plan.grid_x = blocks_x(plan.grid_y);
}

inline TopkPlan strip_topk_plan(const StripTopkParams& p, const DeviceLimits& limits) {
  const int multiprocessors = limits.multiprocessors;
  const StripBankView& bank = p.bank;
  TopkPlan plan{};
  const int64_t widths = p.width ? std::min(p.padded_width, p.batch) : 1;
  plan.tiles = std::min((p.batch + kTileQueries - 1) / kTileQueries + widths - 1, p.batch);
  plan.steps = (bank.words + 7) / 8;
  plan.list = list_length(p.k);
  plan.epsilon = static_cast<float>(screening_epsilon(plan.steps, bank.columns, bank.bf16));
  const int64_t blocks = (bank.count + kStripLanes - 1) / kStripLanes;
  const int split = screen_split(bank.columns), most_warps = kScreenWarps / split;
  if (bank.columns == 64 || bank.columns == 16 || bank.columns == 1) {
    plan.unit_bytes =
        bank.columns == 1 ? 64 * (kFlatWords + 1) : 64 * std::max(2 * split * bank.words, bank.words + bank.columns);
    for (int a_warp = bank.columns == 1 && plan.tiles > 1 ? 8 : 1; a_warp >= 1; a_warp -= 7) {
      plan.tiles_a_warp = a_warp;
      int across = 1;
      while (a_warp == 1 && across < most_warps && across < plan.tiles) across *= 2;
      for (; across >= 1 && plan.form == TopkForm::kNone; across /= 2)
        for (int deep = most_warps / across; deep >= 1; deep /= 2) {
          plan.tiles_across = across, plan.blocks_deep = deep, plan.warps = across * deep * split;
          plan.shared = screen_shared(plan, bank.columns);
          if (plan.shared > limits.shared_bytes) continue;
          plan.form = bank.columns == 1 ? TopkForm::kFlat : TopkForm::kSpectral;
          break;
        }
      if (plan.form != TopkForm::kNone) break;
    }
  }
  if (plan.form == TopkForm::kNone) return plan;
  const int64_t most_slots = std::max<int64_t>(
      1, kListBytes / (int64_t{sizeof(Kept)} * plan.list * kTileQueries * std::max<int64_t>(plan.tiles, 1)));
  const int64_t group_tiles = plan.tiles_a_warp * plan.tiles_across, block_slots = plan.blocks_deep * split;
  screen_grid(plan, (plan.tiles + group_tiles - 1) / group_tiles, (blocks + plan.blocks_deep - 1) / plan.blocks_deep,
              most_slots / block_slots, multiprocessors);
  plan.slots = plan.grid_x * block_slots;
  return plan;
}

inline const char* form_name(TopkForm form, int64_t columns) {
  if (form == TopkForm::kSpectral) return columns == 16 ? "spectral16" : "spectral64";
  return "flat";
}

}  // namespace geoloc_fast::cuda
