// SPDX-License-Identifier: Apache-2.0
#include "cpu/azimuth_crop_space.h"
#include "cpu/azimuth_pack.h"
#include "cpu/threads.h"
#include "geoloc_fast/azimuth_crop.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

constexpr double kMinEnergyShare = 1e-6;  // a window with less of its strip's energy is noise

// Runs pair(b, space) for every b, each thread with a space of its own.
template <typename Function>
void for_pairs(int64_t batch, int64_t values, int64_t query_columns, int64_t columns, void* workspace, int threads,
               Function&& pair) {
  const int64_t seats = min_of(batch, max_of(threads, 1));
  int64_t* counter = static_cast<int64_t*>(workspace);
  char* spaces = static_cast<char*>(workspace) + 64;
  const int64_t bytes = crop_space(values, query_columns, columns, nullptr).bytes;
  *counter = 0;
  auto seat = [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const CropSpace space = crop_space(values, query_columns, columns, spaces + s * bytes);
      for (;;) {
        const int64_t b = __atomic_fetch_add(counter, int64_t{1}, __ATOMIC_RELAXED);
        if (b >= batch) break;
        pair(b, space);
      }
    }
  };
  parallel_for(seats, 1, threads, seat);
}

// One packed pair.
struct Pair {
  const CropSpace& space;
  int64_t values, columns, width;
  Packed query, strip;
  double query_energy = 0, strip_energy = 0;
  bool broken;

  Pair(const StripTensor& q, const StripTensor& s, const int64_t* query_width, int64_t b, const CropSpace& at)
      : space(at), values(q.channels * q.height), columns(s.columns) {
    width = query_width == nullptr ? q.columns : query_width[b] < 0 ? 0 : min_of(query_width[b], q.columns);
    query = pack_rows(q, b, width, space.query, space.query_row);
    strip = pack_rows(s, b, columns, space.strip, space.shifts);
    broken = query.broken || strip.broken;
    for (int64_t k = 0; k < values; ++k) {
      const float* from = space.strip + k * space.shifts;
      float* to = space.around + k * space.strip_row;
      for (int64_t x = 0; x < columns; ++x) to[x] = from[x];
      for (int64_t x = columns; x < space.strip_row; ++x) to[x] = to[x - columns];
    }
    f64x8 sum{};
    for (int64_t i = 0; i < values * space.query_row; i += 8) {
      const f64x8 v = low_doubles(space.query + i);
      sum += v * v;
    }
    query_energy = sum_of(sum);
    for (int64_t x = 0; x < space.shifts; x += 8) {
      f64x8 column{};
      for (int64_t k = 0; k < values; ++k) {
        const f64x8 v = low_doubles(space.strip + k * space.shifts + x);
        column += v * v;
      }
      for (int64_t lane = 0; lane < 8; ++lane) space.column[x + lane] = column[lane];
    }
    for (int64_t x = 0; x < columns; ++x) strip_energy += space.column[x];
    for (int64_t s0 = 0; s0 < columns; ++s0) space.energy[s0] = 0;
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t s0 = 0; s0 < columns - x; ++s0) space.energy[s0] += space.column[s0 + x];
      for (int64_t s0 = columns - x; s0 < columns; ++s0) space.energy[s0] += space.column[s0 + x - columns];
    }
  }

  bool usable(int64_t s) const { return query_energy > 0 && window_usable(s); }
  bool window_usable(int64_t s) const { return space.energy[s] > kMinEnergyShare * strip_energy; }

  // out[s] = sum_{k, x < width} left[k][x] strip[k][s + x]; left has rows of query_row.
  void correlate(const float* left, float* out) const {
    const int64_t step = max_of(1, 4 * kSumBlock / max_of(width, 1));
    for (int64_t s = 0; s < space.shifts; s += 16) {
      f32x16 total{};
      for (int64_t first = 0; first < values; first += step) {
        f32x16 sum0{}, sum1{}, sum2{}, sum3{};
        for (int64_t k = first; k < min_of(first + step, values); ++k) {
          const float* a = left + k * space.query_row;
          const float* b = space.around + k * space.strip_row + s;
          int64_t x = 0;
          for (; x + 4 <= width; x += 4) {
            sum0 += load16(b + x) * a[x];
            sum1 += load16(b + x + 1) * a[x + 1];
            sum2 += load16(b + x + 2) * a[x + 2];
            sum3 += load16(b + x + 3) * a[x + 3];
          }
          if (x < width) sum0 += load16(b + x) * a[x];
          if (x + 1 < width) sum1 += load16(b + x + 1) * a[x + 1];
          if (x + 2 < width) sum2 += load16(b + x + 2) * a[x + 2];
        }
        total += (sum0 + sum1) + (sum2 + sum3);
      }
      store16(out + s, total);
    }
  }

  // In float64, in one order. Rows of the query end in zeros, so whole vectors may be read.
  double exact_correlation(int64_t s) const { return exact_sum(space.query, s); }

  double exact_sum(const float* left, int64_t s) const {
    f64x8 sum0{}, sum1{};
    for (int64_t k = 0; k < values; ++k) {
      const float* a = left + k * space.query_row;
      const float* b = space.around + k * space.strip_row + s;
      for (int64_t x = 0; x < space.query_row; x += 16) {
        sum0 += low_doubles(a + x) * low_doubles(b + x);
        sum1 += low_doubles(a + x + 8) * low_doubles(b + x + 8);
      }
    }
    return sum_of(sum0 + sum1);
  }

  double unit() const { return static_cast<double>(query.unit) * static_cast<double>(strip.unit); }

  // space.logit; false if a softmax of them is not defined.
  bool logits(double scale, double tau, const float* noise, int64_t stride) const {
    const double factor = scale / tau * unit();
    double best = -__builtin_inf();
    bool ordered = true;
    for (int64_t s = 0; s < columns; ++s) {
      const double logit =
          static_cast<double>(space.correlation[s]) * factor + static_cast<double>(noise[s * stride]) / tau;
      space.logit[s] = static_cast<float>(logit);
      ordered = ordered && logit == logit;
      best = logit > best ? logit : best;
    }
    return ordered && __builtin_isfinite(static_cast<float>(best));
  }

  // First maximum, exact where two shifts are closer than the error of what was computed.
  int64_t choose(Selection select, double scale, double tau, const float* noise, int64_t stride) const {
    const double norms = __builtin_sqrt(query_energy * strip_energy);
    const double error = crop_error(values, width) * norms;
    auto value = [&](int64_t s, double correlation) {
      if (select == Selection::kGumbel)
        return (scale * (correlation * unit()) + static_cast<double>(noise[s * stride])) / tau;
      if (select == Selection::kCosine) return usable(s) ? correlation / __builtin_sqrt(space.energy[s]) : 0.0;
      return correlation;
    };
    auto reach = [&](int64_t s) {
      if (select == Selection::kGumbel) return error * unit() * (scale < 0 ? -scale : scale) / tau;
      if (select == Selection::kCosine) return usable(s) ? error / __builtin_sqrt(space.energy[s]) : 0.0;
      return error;
    };
    double floor = -__builtin_inf();  // the best is at least this
    for (int64_t s = 0; s < columns; ++s) {
      const double low = value(s, static_cast<double>(space.correlation[s])) - reach(s);
      floor = low > floor ? low : floor;
    }
    int64_t candidates = 0, last = 0;
    for (int64_t s = 0; s < columns; ++s)
      if (value(s, static_cast<double>(space.correlation[s])) + reach(s) >= floor) ++candidates, last = s;
    if (candidates == 1) return last;
    int64_t best_shift = 0;
    double best = -__builtin_inf();
    for (int64_t s = 0; s < columns; ++s) {
      if (!(value(s, static_cast<double>(space.correlation[s])) + reach(s) >= floor)) continue;
      const double exact = value(s, exact_correlation(s));
      if (exact > best) best = exact, best_shift = s;
    }
    return best_shift;
  }
};

// sum_s weight[s] from[step s .. step s + 15]
GEOLOC_FAST_INLINE f32x16 weighted(const float* from, int64_t step, const float* weight, int64_t count) {
  f32x16 sum0{}, sum1{}, sum2{}, sum3{};
  int64_t s = 0;
  for (; s + 4 <= count; s += 4) {
    sum0 += load16(from + step * s) * weight[s];
    sum1 += load16(from + step * (s + 1)) * weight[s + 1];
    sum2 += load16(from + step * (s + 2)) * weight[s + 2];
    sum3 += load16(from + step * (s + 3)) * weight[s + 3];
  }
  for (; s < count; ++s) sum0 += load16(from + step * s) * weight[s];
  return (sum0 + sum1) + (sum2 + sum3);
}

bool sound(const StripTensor& query, const StripTensor& strips) {
  return query.items == strips.items && query.channels == strips.channels && query.height == strips.height &&
         query.columns >= 1 && query.columns <= strips.columns;
}

bool known(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

void crop_pair(const AzimuthCropParams& p, int64_t b, const CropSpace& space) {
  const Pair pair(p.query, p.strips, p.query_width, b, space);
  const int64_t values = pair.values, query_columns = p.query.columns;
  float* crop = p.crop + b * values * query_columns;
  const float* noise = p.noise == nullptr ? nullptr : p.noise + b * p.noise_stride[0];
  pair.correlate(space.query, space.correlation);
  bool defined = !pair.broken;
  if (defined && p.select == Selection::kGumbel) defined = pair.logits(p.scale, p.tau, noise, p.noise_stride[1]);
  if (!defined) {
    for (int64_t i = 0; i < values * query_columns; ++i) crop[i] = __builtin_nanf("");
    p.score[b] = __builtin_nanf("");
    p.shift[b] = 0;
    return;
  }
  const int64_t shift = pair.choose(p.select, p.scale, p.tau, noise, p.noise_stride[1]);
  const double energy = space.energy[shift];
  const float per_norm = pair.window_usable(shift) ? static_cast<float>(1.0 / __builtin_sqrt(energy)) : 0.0f;
  for (int64_t k = 0; k < values; ++k) {
    const float* from = space.around + k * space.strip_row + shift;
    float* to = crop + k * query_columns;
    for (int64_t x = 0; x < pair.width; ++x) to[x] = from[x] * per_norm;
    for (int64_t x = pair.width; x < query_columns; ++x) to[x] = 0.0f;
  }
  double score = pair.usable(shift) ? pair.exact_correlation(shift) / __builtin_sqrt(pair.query_energy * energy) : 0.0;
  score = score > 1.0 ? 1.0 : score < -1.0 ? -1.0 : score;
  p.score[b] = static_cast<float>(score);
  p.shift[b] = shift;
}

void crop_pair_backward(const AzimuthCropBackwardParams& p, int64_t b, const CropSpace& space) {
  const Pair pair(p.query, p.strips, p.query_width, b, space);
  const int64_t values = pair.values, columns = pair.columns, width = pair.width, query_columns = p.query.columns;
  const bool gumbel = p.select == Selection::kGumbel;
  const float* noise = p.noise == nullptr ? nullptr : p.noise + b * p.noise_stride[0];
  const float* grad_crop = p.grad_crop + b * values * query_columns;
  float* grad_query = p.grad_query + b * values * query_columns;
  float* grad_strip = p.grad_strips + b * values * columns;
  bool defined = !pair.broken;
  if (gumbel) {
    p.grad_scale[b] = 0;
    pair.correlate(space.query, space.correlation);
    if (defined) defined = pair.logits(p.scale, p.tau, noise, p.noise_stride[1]);
  }
  if (!defined || !pair.window_usable(p.shift[b])) {
    for (int64_t i = 0; i < values * query_columns; ++i) grad_query[i] = 0;
    for (int64_t i = 0; i < values * columns; ++i) grad_strip[i] = 0;
    return;
  }
  const int64_t shift = p.shift[b];
  const float per_norm = static_cast<float>(1.0 / __builtin_sqrt(space.energy[shift]));
  const float per_query = pair.query_energy > 0 ? static_cast<float>(1.0 / __builtin_sqrt(pair.query_energy)) : 0.0f;
  const float g = per_query > 0 ? p.grad_score[b] : 0.0f, score = p.score[b];
  for (int64_t k = 0; k < values; ++k)
    for (int64_t x = 0; x < space.query_row; x += 16) {
      const int64_t there = min_of(16, width - x);
      const float* from = grad_crop + k * query_columns + x;
      store16(space.window + k * space.query_row + x, there == 16 ? load16(from)
                                                      : there > 0 ? load_part(from, there)
                                                                  : f32x16{});
    }
  const float along = static_cast<float>(pair.exact_sum(space.window, shift)) * per_norm;  // <crop, G>
  const float norm_share = (along * per_norm + g * score * per_norm) * per_norm;
  const float per_both = g * per_query * per_norm, query_share = g * score * per_query * per_query;
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int64_t k = 0; k < values; ++k)
    for (int64_t x = 0; x < space.query_row; x += 16) {
      float* change = space.window + k * space.query_row + x;
      const f32x16 window = load16(space.around + k * space.strip_row + shift + x);
      const f32x16 value =
          load16(change) * per_norm + load16(space.query + k * space.query_row + x) * per_both - window * norm_share;
      store16(change, pick(lane < static_cast<int32_t>(width - x), value, f32x16{}));
    }

  float soft = 0;  // slopes become weights of packed windows
  if (gumbel) {
    pair.correlate(space.window, space.window_slope);
    float best = space.logit[0];
    for (int64_t s = 1; s < columns; ++s) best = space.logit[s] > best ? space.logit[s] : best;
    for (int64_t s = columns; s < space.shifts; ++s) space.logit[s] = best - 1000.0f;
    double total = 0, mean = 0, of_scale = 0;
    for (int64_t s = 0; s < space.shifts; s += 16)
      store16(space.logit + s, exp_of_negative(load16(space.logit + s) - best));
    for (int64_t s = 0; s < columns; ++s) {
      total += static_cast<double>(space.logit[s]);
      mean += static_cast<double>(space.logit[s]) * static_cast<double>(space.window_slope[s]);
    }
    mean /= total;
    for (int64_t s = 0; s < columns; ++s) {
      const double slope =
          static_cast<double>(space.logit[s]) / total * (static_cast<double>(space.window_slope[s]) - mean);
      of_scale += slope * static_cast<double>(space.correlation[s]);
      space.window_slope[s] = static_cast<float>(slope);
    }
    p.grad_scale[b] = of_scale * pair.unit() / p.tau;
    soft = static_cast<float>(p.scale / p.tau * pair.unit());
  }
  for (int64_t k = 0; k < values; ++k) {
    const float* around = space.around + k * space.strip_row;
    const float* query = space.query + k * space.query_row;
    const float* change = space.window + k * space.query_row;
    float out[16];
    for (int64_t x = 0; x < space.query_row; x += 16) {
      const f32x16 sum = gumbel ? weighted(around + x, 1, space.window_slope, columns) : f32x16{};
      store16(out, (sum * soft + load16(around + shift + x) * per_both - load16(query + x) * query_share) *
                       pair.query.inverse);
      for (int64_t i = 0; i < min_of(16, query_columns - x); ++i)
        grad_query[k * query_columns + x + i] = x + i < width ? out[i] : 0.0f;
    }
    // moved[W + j - s] is the query moved to s, at column j.
    float* moved = space.moved;
    for (int64_t x = 0; x < columns; ++x) moved[x] = moved[columns + x] = x < width ? query[x] : 0.0f;
    for (int64_t x = 2 * columns; x < 2 * space.shifts + 16; ++x) moved[x] = 0;
    float* row = space.strip + k * space.shifts;
    for (int64_t j = 0; j < space.shifts; j += 16) {
      const f32x16 sum = gumbel ? weighted(moved + columns + j, -1, space.window_slope, columns) : f32x16{};
      store16(row + j, sum * soft);
    }
    for (int64_t x = 0; x < width; ++x) row[shift + x < columns ? shift + x : shift + x - columns] += change[x];
    for (int64_t j = 0; j < columns; ++j) grad_strip[k * columns + j] = row[j] * pair.strip.inverse;
  }
}

}  // namespace

Status azimuth_crop(const AzimuthCropParams& p, int threads) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  if (!sound(p.query, p.strips)) return Status::kBadSize;
  for_pairs(p.query.items, p.query.channels * p.query.height, p.query.columns, p.strips.columns, p.workspace, threads,
            [&](int64_t b, const CropSpace& space) { crop_pair(p, b, space); });
  return Status::kOk;
}

Status azimuth_crop_backward(const AzimuthCropBackwardParams& p, int threads) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  if (!sound(p.query, p.strips)) return Status::kBadSize;
  for_pairs(p.query.items, p.query.channels * p.query.height, p.query.columns, p.strips.columns, p.workspace, threads,
            [&](int64_t b, const CropSpace& space) { crop_pair_backward(p, b, space); });
  return Status::kOk;
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
