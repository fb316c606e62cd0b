// How strip_topk runs a search: pure functions of its shape, tested without running one.
// SPDX-License-Identifier: Apache-2.0
//
// Direct or spectral. A bank holds spectra. The direct form would decode a block once (K W^2 / 2 multiply-adds with
// a table, K 2.5 W log2 W with a fast transform) and take K W w multiply-adds a pair for a query of width w; the
// spectral form takes 1.5 K W in fp32 and the equivalent of K W in bf16-dot, plus about 5 W. So at w = 1 alone the
// direct form saves a third of fp32's work, after the decoding is paid for by some ten queries; at w = 2 it has
// already lost, and with one query the search runs at the speed of memory either way. One-column photos do not
// pay for a second kernel: the direct form is not built. (W = 1 is both forms at once, with no transform: "flat".)
//
// Which products. fp32 banks: three products (strip_topk.h). bf16 banks: vdpbf16ps where it exists, since it does
// two channels an instruction and needs no decoding; else decode and take three products.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "cpu/threads.h"
#include "geoloc_fast/strip_topk.h"

namespace geoloc_fast::cpu {

enum class Products : int { kFp32 = 0, kBf16 = 1, kBf16Dot = 2 };
constexpr const char* kProductsNames[] = {"fp32", "bf16", "bf16-dot"};

constexpr int64_t kChannelsInARow = 256;  // summed before they are added to what came before
constexpr float kScoreSlack = 64.0f / 16777216.0f;

// Operands of this many bytes stay near the cores while the bank streams by.
constexpr int64_t kOperandBytes = 4 << 20;
// Lists of kept pairs take at most this much, but for a single query.
constexpr int64_t kListBytes = 256 << 20;
constexpr int64_t kKeptBytes = 24;  // of one pair
// A piece of the bank handed to a thread: long enough to stream, short enough to share out evenly.
constexpr int64_t kPieceBytes = 2 << 20;

struct StripTopkPlan {
  Products products;
  int64_t operand_words;  // 32-bit words of a query's operands
  int64_t pass;           // queries in one pass over the bank
  int64_t list;           // kept pairs of a query and slot
  int64_t piece;          // blocks handed to a slot at a time
  int slots;
  float epsilon;  // the bound without the rounding of the query
};

// Inverse transforms written out for one W; others take the general one.
constexpr bool has_fixed_inverse(int64_t columns) {
  return columns == 1 || columns == 8 || columns == 16 || columns == 32 || columns == 64;
}

inline int64_t odd_part(int64_t n) {
  while (n % 2 == 0) n /= 2;
  return n;
}

inline double rounding(double n) { return n / (16777216.0 - n); }  // g(n)

inline double screening_epsilon(int64_t values, int64_t columns, Products products) {
  const int64_t row = values < kChannelsInARow ? values : kChannelsInARow;
  const double n = static_cast<double>(row + (values + kChannelsInARow - 1) / kChannelsInARow);
  int64_t levels = 0;
  while ((int64_t{1} << levels) < columns) ++levels;
  const double product = products == Products::kBf16Dot ? 2 * rounding(2 * n + 4) : 4 * rounding(n + 4);
  const double inverse = 4 * rounding(static_cast<double>(8 * (levels + 1) + 2 * odd_part(columns) + 8));
  return 1.1 * (product + inverse);
}

inline int strip_topk_threads(const StripTopkParams& p, int threads) {
  return worth_threads(static_cast<double>(p.batch) * static_cast<double>(p.bank.count * p.bank.values) *
                           static_cast<double>(p.bank.columns),
                       threads);
}

inline StripTopkPlan strip_topk_plan(const StripTopkParams& p, Isa isa, int threads) {
  const StripBankView& bank = p.bank;
  StripTopkPlan plan{};
  plan.products = !bank.bf16 ? Products::kFp32 : isa == Isa::kAvx512Bf16 ? Products::kBf16Dot : Products::kBf16;
  const int64_t real_planes = bank.columns == 1 ? 1 : 2 - bank.columns % 2;
  const int64_t frequencies = (bank.columns - real_planes) / 2;
  if (plan.products == Products::kBf16Dot)
    plan.operand_words = bank.words * bank.columns;
  else
    plan.operand_words = bank.words * (bank.bf16 ? 2 : 1) * (real_planes + 3 * frequencies);
  const int64_t blocks = (bank.count + kStripLanes - 1) / kStripLanes;
  plan.slots = threads < 1 ? 1 : threads;
  plan.piece = kPieceBytes / bank.block_bytes;
  if (plan.piece > blocks / (4 * plan.slots)) plan.piece = blocks / (4 * plan.slots);
  plan.piece = plan.piece < 2 ? 2 : plan.piece / 2 * 2;  // kernels take blocks in twos
  if (plan.slots > (blocks + plan.piece - 1) / plan.piece)
    plan.slots = static_cast<int>((blocks + plan.piece - 1) / plan.piece);
  if (plan.slots < 1) plan.slots = 1;
  plan.list = 2 * p.k + 64;
  plan.pass = kOperandBytes / (4 * plan.operand_words);
  if (plan.pass > kListBytes / (kKeptBytes * plan.list * plan.slots))
    plan.pass = kListBytes / (kKeptBytes * plan.list * plan.slots);
  plan.pass = plan.pass < 8 ? 8 : plan.pass / 8 * 8;
  if (plan.pass > p.batch) plan.pass = p.batch;
  plan.epsilon = static_cast<float>(screening_epsilon(bank.values, bank.columns, plan.products));
  return plan;
}

}  // namespace geoloc_fast::cpu
