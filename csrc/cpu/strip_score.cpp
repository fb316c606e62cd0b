// SPDX-License-Identifier: Apache-2.0
#include "cpu/strip_score.h"

#include <algorithm>
#include <limits>

#include "cpu/slots.h"

namespace geoloc_fast::cpu {

int64_t strip_score_workspace(int64_t batch, int64_t values, int64_t columns, int64_t padded_width, int threads) {
  const int64_t queries = batch * (exact_query_doubles(values, padded_width) * 8 + int64_t{sizeof(ExactQuery)});
  return queries + GEOLOC_FAST_PICK_KERNEL(strip_score_scratch)(columns) * std::max(threads, 1);
}

Status strip_score(const StripScoreParams& p, int threads) {
  const StripBankView& bank = p.bank;
  if (bank.columns < 1 || bank.columns > kMaxStripColumns || bank.values < 1) return Status::kBadSize;
  if (p.padded_width < 1 || p.padded_width > bank.columns) return Status::kBadSize;
  for (int64_t i = 0; i < p.batch * p.n; ++i)
    if (p.index[i] < -1 || p.index[i] >= bank.count) return Status::kBadSize;
  for (int64_t b = 0; p.width != nullptr && b < p.batch; ++b)
    if (p.width[b] < 1 || p.width[b] > p.padded_width) return Status::kBadSize;

  // In float64, and a strip is transformed first: eight of the others each.
  threads = worth_threads(
      8.0 * static_cast<double>(p.batch * p.n) * static_cast<double>(bank.values * bank.columns * p.padded_width),
      threads);
  const Isa isa = current_isa();
  const auto prepare = GEOLOC_FAST_KERNEL_OF(isa, strip_query_prepare);
  const auto pair = GEOLOC_FAST_KERNEL_OF(isa, strip_score_pair);
  const int64_t per_query = exact_query_doubles(bank.values, p.padded_width);
  const int64_t per_slot = GEOLOC_FAST_KERNEL_OF(isa, strip_score_scratch)(bank.columns);
  double* values = static_cast<double*>(p.workspace);
  uint8_t* scratch = reinterpret_cast<uint8_t*>(values + p.batch * per_query);
  ExactQuery* queries = reinterpret_cast<ExactQuery*>(scratch + per_slot * std::max(threads, 1));
  auto prepare_queries = [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      queries[b] = prepare(p.query + b * bank.values * p.padded_width, bank.values, p.padded_width,
                           p.width ? p.width[b] : p.padded_width, values + b * per_query);
  };
  parallel_for(p.batch, 4, threads, prepare_queries);
  for_slots(p.batch * p.n, 8, threads, [&](int slot, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ExactScore result{-std::numeric_limits<float>::infinity(), -1};
      float* curve = p.curve ? p.curve + i * bank.columns : nullptr;
      if (p.index[i] >= 0)
        result = pair(bank, p.circle, queries[i / p.n], decides(p.cosine, p.dot), p.index[i], kAnyShift, curve,
                      scratch + slot * per_slot);
      else if (curve != nullptr)
        std::fill_n(curve, bank.columns, result.score);
      if (curve != nullptr) continue;
      p.score[i] = result.score;
      p.shift[i] = result.shift;
    }
  });
  return Status::kOk;
}

}  // namespace geoloc_fast::cpu
