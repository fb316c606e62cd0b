// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "cpu/strip_exact.h"
#include "cpu/strip_score.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

static_assert(kChunk == kStripScoreChunk, "a query is padded to the chunks it is scored in");

constexpr double kMinEnergyShare = 1e-6;

// total[s] += sum over the chunk's channels and the query's columns, for 8 kVectors shifts. The channels go round
// four sets of sums, which hides the latency of an addition.
template <int kVectors>
GEOLOC_FAST_INLINE void correlate(const double* query, int64_t width, const double* strip, int64_t stride,
                                  double* total) {
  f64x8 sum[4][kVectors] = {};
  for (int64_t c = 0; c < kChunk; c += 4)
    for (int64_t x = 0; x < width; ++x)
      for (int i = 0; i < 4; ++i) {
        const f64x8 value = splat8(query[(c + i) * width + x]);
        const double* columns = strip + (c + i) * stride + x;
        for (int v = 0; v < kVectors; ++v) sum[i][v] += value * load8(columns + 8 * v);
      }
  for (int v = 0; v < kVectors; ++v)
    store8(total + 8 * v, load8(total + 8 * v) + ((sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v])));
}

}  // namespace

ExactQuery strip_query_prepare(const float* query, int64_t values, int64_t padded_width, int64_t width,
                               double* memory) {
  double energy[4] = {};
  for (int64_t c = 0; c < values; ++c)
    for (int64_t x = 0; x < width; ++x) {
      const double value = query[c * padded_width + x];
      memory[c * width + x] = value;
      energy[(c * width + x) % 4] += value * value;
    }
  for (int64_t i = values * width; i < exact_query_doubles(values, width); ++i) memory[i] = 0.0;
  return {memory, width, (energy[0] + energy[1]) + (energy[2] + energy[3])};
}

ExactScore strip_score_pair(const StripBankView& bank, const StripBasis& basis, const ExactQuery& query, bool cosine,
                            int64_t row, double* scratch) {
  const int64_t columns = bank.columns, padded = basis.padded, width = query.width;
  const int64_t stride = padded + strip_padded(width);  // columns of a strip, and again as many as a window reaches
  double* planes = scratch;
  double* strip = planes + kChunk * columns;
  double* correlation = strip + kChunk * 2 * padded;
  double* energy = correlation + padded;         // of a column, continued like the strip
  double* window_energy = energy + 2 * padded;
  for (int64_t n = 0; n < padded; ++n) correlation[n] = energy[n] = window_energy[n] = 0.0;

  for (int64_t begin = 0; begin < bank.values; begin += kChunk) {
    gather_planes(bank, row, begin, planes);
    transform(planes, columns, kChunk, columns, basis.planes_by_column, padded, strip, stride);
    for (int64_t c = 0; c < kChunk; ++c) {
      double* line = strip + c * stride;
      for (int64_t n = 0; n < padded; n += 8) {
        const f64x8 column = through_float(load8(line + n));
        store8(line + n, column);
        store8(energy + n, load8(energy + n) + column * column);
      }
      for (int64_t n = columns; n < stride; ++n) line[n] = line[n - columns];
    }
    const double* values = query.values + begin * width;
    int64_t s = 0;
    for (; s + 16 <= padded; s += 16) correlate<2>(values, width, strip + s, stride, correlation + s);
    for (; s < padded; s += 8) correlate<1>(values, width, strip + s, stride, correlation + s);
  }

  double strip_energy = 0.0;
  for (int64_t n = 0; n < columns; ++n) strip_energy += energy[n];
  if (!is_finite(strip_energy) || !is_finite(query.energy)) return {static_cast<float>(NAN), 0};
  for (int64_t n = columns; n < stride; ++n) energy[n] = energy[n - columns];
  for (int64_t x = 0; x < width; ++x)
    for (int64_t s = 0; s < padded; s += 8) store8(window_energy + s, load8(window_energy + s) + load8(energy + s + x));

  auto score = [&](int64_t s) {
    const bool usable = window_energy[s] > kMinEnergyShare * strip_energy && query.energy > 0.0;
    return usable ? correlation[s] / std::sqrt(query.energy * window_energy[s]) : 0.0;
  };
  int64_t best = 0;
  if (cosine) {
    double highest = score(0);
    for (int64_t s = 1; s < columns; ++s)
      if (const double here = score(s); here > highest) highest = here, best = s;
  } else {
    for (int64_t s = 1; s < columns; ++s)
      if (correlation[s] > correlation[best]) best = s;
  }
  return {static_cast<float>(score(best)), static_cast<int32_t>(best)};
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
