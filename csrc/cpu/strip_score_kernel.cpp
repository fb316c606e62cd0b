// SPDX-License-Identifier: Apache-2.0
#include "cpu/strip_exact.h"
#include "cpu/strip_score.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

constexpr double kMinEnergyShare = 1e-6;

// total[s] += sum over x of query[x] strip[s + x], lane by lane, for `kShifts` shifts side by side.
template <int kShifts>
GEOLOC_FAST_INLINE void correlate(const f64x8* query, int64_t width, const f64x8* strip, f64x8* total) {
  f64x8 sum[kShifts];
  for (int s = 0; s < kShifts; ++s) sum[s] = total[s];
  for (int64_t x = 0; x < width; ++x)
    for (int s = 0; s < kShifts; ++s) sum[s] += query[x] * strip[s + x];
  for (int s = 0; s < kShifts; ++s) total[s] = sum[s];
}

}  // namespace

ExactQuery strip_query_prepare(const float* query, int64_t values, int64_t padded_width, int64_t width,
                               double* memory) {
  f64x8 energy = {};
  for (int64_t begin = 0; begin < values; begin += 8)
    for (int64_t x = 0; x < width; ++x) {
      f64x8 lanes = {};
      for (int64_t c = 0; c < 8 && begin + c < values; ++c) lanes[c] = query[(begin + c) * padded_width + x];
      energy += lanes * lanes;
      std::memcpy(memory + (begin * width + x * 8), &lanes, sizeof lanes);
    }
  return {memory, width, lane_sum(energy)};
}

int64_t strip_score_scratch(int64_t columns) {
  return static_cast<int64_t>(sizeof(f64x8)) * (exact_scratch(columns) + (2 * kChunkVectors + 2) * columns) +
         (2 * columns + 7) / 8 * 64;
}

ExactScore strip_score_pair(const StripBankView& bank, const double* circle, const ExactQuery& query, Decides decides,
                            int64_t row, int32_t known_shift, float* curve, void* scratch) {
  const int64_t columns = bank.columns, width = query.width;
  const int64_t reach = columns + width - 1;  // columns of a strip, and again as many as a window reaches
  const int64_t first_shift = known_shift < 0 ? 0 : known_shift, shifts = known_shift < 0 ? columns : 1;
  f64x8* strip = static_cast<f64x8*>(scratch);
  f64x8* correlation = strip + kChunkVectors * 2 * columns;
  f64x8* energy = correlation + columns;
  double* column_energy = reinterpret_cast<double*>(energy + columns);
  f64x8* rest = reinterpret_cast<f64x8*>(column_energy + (2 * columns + 7) / 8 * 8);
  for (int64_t n = 0; n < columns; ++n) correlation[n] = energy[n] = f64x8{};

  for (int64_t begin = 0; begin < bank.values; begin += kChunk) {
    decode(bank, row, begin, circle, strip, reach, rest);
    for (int64_t v = 0; v < kChunkVectors && begin + 8 * v < bank.values; ++v) {
      f64x8* line = strip + v * reach;
      for (int64_t n = 0; n < columns; ++n) energy[n] += line[n] * line[n];
      for (int64_t n = columns; n < reach; ++n) line[n] = line[n - columns];
      const f64x8* values = reinterpret_cast<const f64x8*>(query.values + (begin + 8 * v) * width);
      int64_t s = first_shift;
      for (; s + 8 <= first_shift + shifts; s += 8) correlate<8>(values, width, line + s, correlation + s);
      for (; s < first_shift + shifts; ++s) correlate<1>(values, width, line + s, correlation + s);
    }
  }

  double strip_energy = 0.0;
  for (int64_t n = 0; n < columns; ++n) strip_energy += column_energy[n] = lane_sum(energy[n]);
  if (!is_finite(strip_energy) || !is_finite(query.energy)) {
    for (int64_t s = 0; curve != nullptr && s < columns; ++s) curve[s] = static_cast<float>(NAN);
    return {static_cast<float>(NAN), 0};
  }
  for (int64_t n = columns; n < reach; ++n) column_energy[n] = column_energy[n - columns];

  auto product = [&](int64_t s) { return lane_sum(correlation[s]); };
  auto cosine = [&](int64_t s) {
    double window_energy = 0.0;
    for (int64_t x = 0; x < width; ++x) window_energy += column_energy[s + x];
    const bool usable = window_energy > kMinEnergyShare * strip_energy && query.energy > 0.0;
    return usable ? product(s) / std::sqrt(query.energy * window_energy) : 0.0;
  };
  if (curve != nullptr) {
    for (int64_t s = 0; s < columns; ++s) curve[s] = static_cast<float>(cosine(s));
    return {};
  }
  int64_t best = first_shift;
  if (shifts > 1) {
    const bool by_cosine = decides == Decides::kCosine;
    double highest = by_cosine ? cosine(0) : product(0);
    for (int64_t s = 1; s < columns; ++s)
      if (const double here = by_cosine ? cosine(s) : product(s); here > highest) highest = here, best = s;
  }
  const double score = decides == Decides::kDot ? product(best) : cosine(best);
  return {static_cast<float>(score), static_cast<int32_t>(best)};
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
