// SPDX-License-Identifier: Apache-2.0
#include "cpu/azimuth_fourier.h"
#include "cpu/azimuth_pack.h"
#include "cpu/azimuth_product.h"
#include "cpu/azimuth_space.h"
#include "cpu/threads.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

constexpr double kMinEnergyShare = 1e-6;   // a window with less of its strip's energy is noise: it scores 0
constexpr float kThinWindow = 8.0f;        // |strip| / |window| from which the score is summed in float64
constexpr float kLogitRounding = 6.0e-7f;  // of a logit relative to its size

// Runs task(index, scratch) for every index, each thread with a scratch of its own.
template <typename Function>
void run_tasks(const MatchSpace& space, int64_t tasks, int threads, Function&& task) {
  const int64_t seats = min_of(tasks, max_of(threads, 1));
  *space.counter = 0;
  auto seat = [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s)
      for (;;) {
        const int64_t index = __atomic_fetch_add(space.counter, int64_t{1}, __ATOMIC_RELAXED);
        if (index >= tasks) break;
        task(index, space.scratch + s * space.scratch_bytes);
      }
  };
  parallel_for(seats, 1, threads, seat);
}

GEOLOC_FAST_INLINE float* take_floats(char*& scratch, int64_t count) {
  float* piece = reinterpret_cast<float*>(scratch);
  scratch += round_up(count * 4, 64);
  return piece;
}

GEOLOC_FAST_INLINE f32x16 load_lanes(const float* from, int64_t count) {
  if (count >= 16) return load16(from);
  float padded[16] = {};
  for (int64_t lane = 0; lane < count; ++lane) padded[lane] = from[lane];
  return load16(padded);
}

GEOLOC_FAST_INLINE void store_lanes(float* to, f32x16 value, int64_t count) {
  if (count >= 16) return store16(to, value);
  float padded[16];
  store16(padded, value);
  for (int64_t lane = 0; lane < count; ++lane) to[lane] = padded[lane];
}

// What forward and backward have in common: the packed queries and strips.
struct Pairs {
  const StripTensor& query;
  const StripTensor& strips;
  const int64_t* query_width;
  MatchSpace space;
  AzimuthPlan plan;
  int64_t batch, references, values, query_columns, columns;
  int64_t distinct = 0;  // widths that occur
  bool fast;             // the transform needs no table

  Pairs(const StripTensor& q, const StripTensor& s, const int64_t* widths, const AzimuthMatchSize& size,
        AzimuthPlan chosen, int threads, void* workspace)
      : query(q),
        strips(s),
        query_width(widths),
        space(match_space(size, chosen, threads, workspace)),
        plan(chosen),
        batch(size.batch),
        references(size.references),
        values(size.values),
        query_columns(size.query_columns),
        columns(size.columns),
        fast(has_fast_transform(size.columns)) {
    sort_by_width();
    if (plan == AzimuthPlan::kSpectral && !fast) fill_transform_table(columns, space.table);
  }

  int64_t clamped_width(int64_t b) const {
    if (query_width == nullptr) return query_columns;
    return query_width[b] < 0 ? 0 : min_of(query_width[b], query_columns);
  }

  void sort_by_width() {
    int32_t* begin = space.width_counts;
    for (int64_t w = 0; w < query_columns + 2; ++w) begin[w] = 0;
    for (int64_t b = 0; b < batch; ++b) ++begin[clamped_width(b) + 1];
    for (int64_t w = 0; w <= query_columns; ++w) {
      if (begin[w + 1] != 0) {
        for (int64_t i = begin[w]; i < begin[w] + begin[w + 1]; ++i) {
          space.width[i] = static_cast<int32_t>(w);
          space.width_index[i] = static_cast<int32_t>(distinct);
        }
        space.widths[distinct++] = static_cast<int32_t>(w);
      }
      begin[w + 1] += begin[w];
    }
    for (int64_t b = 0; b < batch; ++b) space.order[begin[clamped_width(b)]++] = static_cast<int32_t>(b);
  }

  void pack_query(int64_t i, char* scratch) const {
    float* rows = take_floats(scratch, space.padded * space.query_rows);
    const int64_t width = space.width[i], padded = space.padded;
    const Packed packed = pack_rows(query, space.order[i], width, rows, space.query_rows);
    float* columns_out = space.query_columns + i * query_columns * padded;
    rows_to_columns(rows, space.query_rows, padded, query_columns, columns_out);
    const double energy = exact_product(columns_out, columns_out, width * padded);
    space.query_broken[i] = packed.broken;
    space.query_unit[i] = packed.unit;
    space.query_norm[i] = energy > 0 ? static_cast<float>(1.0 / __builtin_sqrt(energy)) : 0.0f;
    if (plan != AzimuthPlan::kSpectral) return;
    const TransformLayout at{padded, space.query_slot, padded};
    for (int64_t k = 0; k < padded; k += 16)
      forward_transform(columns_out + k, width, space.query_spectra + i * 2 * padded + k, at, columns, space.table);
  }

  // Columns, energies and, for the gradient, the column Gram matrix of a strip. `rows` is left with its values.
  void pack_strip(int64_t r, float* rows, char* scratch) const {
    const int64_t padded = space.padded, tile = r / kTile, lane = r % kTile;
    const Packed packed = pack_rows(strips, r, columns, rows, space.strip_rows);
    float* columns_out = space.strip_columns + r * space.strip_width * padded;
    rows_to_columns(rows, space.strip_rows, padded, columns, columns_out);
    for (int64_t i = columns * padded; i < space.strip_width * padded; i += 16)
      store16(columns_out + i, load16(columns_out + i - columns * padded));
    double* column_energy = reinterpret_cast<double*>(scratch);
    double* energy = column_energy + round_up(columns, 8);
    double total = 0;
    for (int64_t x = 0; x < columns; ++x) {
      column_energy[x] = exact_product(columns_out + x * padded, columns_out + x * padded, padded);
      total += column_energy[x];
      energy[x] = 0;
    }
    space.strip_broken[r] = packed.broken ? -1 : 0;
    space.strip_unit[r] = packed.unit;
    space.strip_norm[r] = static_cast<float>(__builtin_sqrt(total));
    int64_t width = 0;
    for (int64_t d = 0; d < distinct; ++d) {
      for (; width < space.widths[d]; ++width) {
        for (int64_t s = 0; s < columns - width; ++s) energy[s] += column_energy[s + width];
        for (int64_t s = columns - width; s < columns; ++s) energy[s] += column_energy[s + width - columns];
      }
      float* norm = space.window_norm + (tile * space.distinct + d) * columns * kTile + lane;
      float largest = 0;
      for (int64_t s = 0; s < columns; ++s) {
        const bool usable = energy[s] > kMinEnergyShare * total;
        norm[s * kTile] = usable ? static_cast<float>(1.0 / __builtin_sqrt(energy[s])) : 0.0f;
        largest = norm[s * kTile] > largest ? norm[s * kTile] : largest;
      }
      space.largest_norm[(tile * space.distinct + d) * kTile + lane] = largest;
    }
  }

  // Lanes past the last strip.
  void pack_nothing(int64_t r) const {
    const int64_t tile = r / kTile, lane = r % kTile;
    space.strip_broken[r] = 0;
    space.strip_unit[r] = 1;
    space.strip_norm[r] = 0;
    for (int64_t d = 0; d < distinct; ++d) {
      for (int64_t s = 0; s < columns; ++s)
        space.window_norm[((tile * space.distinct + d) * columns + s) * kTile + lane] = 0;
      space.largest_norm[(tile * space.distinct + d) * kTile + lane] = 0;
    }
  }

  const float* strip_column(int64_t r, int64_t x) const {
    return space.strip_columns + (r * space.strip_width + (x < columns ? x : x - columns)) * space.padded;
  }

  // In float64, in one order: the same bits on every instruction set.
  double exact_correlation(int64_t i, int64_t r, int64_t s) const {
    double sum = 0;
    const float* q = space.query_columns + i * query_columns * space.padded;
    for (int64_t x = 0; x < space.width[i]; ++x)
      sum += exact_product(q + x * space.padded, strip_column(r, s + x), space.padded);
    return sum;
  }
  double exact_energy(int64_t r, int64_t s, int64_t width) const {
    double sum = 0;
    for (int64_t x = 0; x < width; ++x)
      sum += exact_product(strip_column(r, s + x), strip_column(r, s + x), space.padded);
    return sum;
  }
};

struct Forward : Pairs {
  const AzimuthMatchParams& params;
  float error;     // bound of a correlation's error, relative to |query| |strip|
  float per_term;  // what a product must be multiplied with: the inverse transform is W times too large

  Forward(const AzimuthMatchParams& p, const AzimuthMatchSize& size, int threads)
      : Pairs(p.query, p.strips, p.query_width, size, p.plan, threads, p.workspace),
        params(p),
        error(static_cast<float>(correlation_error(p.plan, values, query_columns, columns))),
        per_term(p.plan == AzimuthPlan::kSpectral ? static_cast<float>(1.0 / static_cast<double>(columns)) : 1.0f) {}

  void pack_tile(int64_t tile, char* scratch) const {
    const int64_t padded = space.padded, count = min_of(kTile, references - tile * kTile);
    const bool spectral = plan == AzimuthPlan::kSpectral;
    float* rows = take_floats(scratch, padded * space.strip_rows);
    char* energies = scratch;
    scratch += 2 * 8 * round_up(columns, 8);
    float* spectra = spectral ? take_floats(scratch, kTile * 2 * space.frequencies * padded) : nullptr;
    const TransformLayout at{padded, kTile * 2 * padded, padded};
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const int64_t r = tile * kTile + lane;
      if (lane >= count) {
        pack_nothing(r);
        continue;
      }
      pack_strip(r, rows, energies);
      if (params.slope != nullptr) gram_matrix(r, rows);
      if (spectral)
        for (int64_t k = 0; k < padded; k += 16)
          forward_transform(strip_column(r, 0) + k, columns, spectra + lane * 2 * padded + k, at, columns, space.table);
    }
    const int64_t planes = spectral ? 2 * space.frequencies : columns;
    float* out = space.strip_tiles + tile * planes * padded * kTile;
    for (int64_t plane = 0; plane < planes; ++plane)
      for (int64_t k = 0; k < padded; k += 16)
        for (int64_t half = 0; half < kTile; half += 16) {
          const float* from[16];
          for (int64_t i = 0; i < 16; ++i) {
            const int64_t lane = min_of(half + i, count - 1);  // a lane past the end repeats the last strip
            from[i] = spectral ? spectra + ((plane / 2 * kTile + lane) * 2 + plane % 2) * padded + k
                               : strip_column(tile * kTile + lane, plane) + k;
          }
          if (spectral)
            transpose16(from, out + ((plane / 2 * padded + k) * 2 + plane % 2) * kTile + half, 2 * kTile);
          else
            transpose16(from, out + (plane * padded + k) * kTile + half, kTile);
        }
  }

  // gram[r][a][b] = <column a, column b>, the columns b written twice.
  void gram_matrix(int64_t r, const float* rows) const {
    float* gram = space.gram + r * columns * space.gram_row;
    const ProductLayout at{1, space.strip_rows, 0, space.strip_rows, 0, space.gram_row, 0};
    for (int64_t k = 0; k < max_of(values, 1); k += kSumBlock)
      product<Product::kReal>(rows + k * space.strip_rows, rows + k * space.strip_rows, gram, at, columns,
                              min_of(kSumBlock, values - k), space.strip_rows, k > 0);
    for (int64_t a = 0; a < columns; ++a) {
      float* row = gram + a * space.gram_row;
      for (int64_t b = columns; b < space.gram_row; ++b) row[b] = row[b - columns];
    }
  }

  // Products of up to kQueryBlock packed queries with a tile of strips: [row][number][kTile].
  void multiply(int64_t tile, int64_t i, int64_t count, float* products) const {
    const int64_t padded = space.padded;
    if (plan == AzimuthPlan::kSpectral) {
      const int64_t f_count = space.frequencies;
      const ProductLayout at{2 * padded, 1, padded, 2 * kTile, kTile, 2 * f_count * kTile, kTile};
      const float* right = space.strip_tiles + tile * f_count * padded * 2 * kTile;
      for (int64_t f = 0; f < f_count; ++f) {
        const float* left = space.query_spectra + f * space.query_slot + i * 2 * padded;
        float* out = products + f * 2 * kTile;
        for (int64_t k = 0; k < max_of(values, 1); k += kSumBlock) {
          const int64_t terms = min_of(kSumBlock, values - k);
          const float* block = right + (f * padded + k) * 2 * kTile;
          if (f == 0)
            product<Product::kPairwise>(left + k, block, out, at, count, terms, kTile, k > 0);
          else
            product<Product::kConjugate>(left + k, block, out, at, count, terms, kTile, k > 0);
        }
      }
      return;
    }
    const int64_t widest = space.width[i + count - 1];
    const ProductLayout at{query_columns * padded, 1, 0, kTile, 0, columns * kTile, 0};
    const float* right = space.strip_tiles + tile * columns * padded * kTile;
    const float* left = space.query_columns + i * query_columns * padded;
    for (int64_t s = 0; s < columns; ++s)
      for (int64_t x = 0; x < max_of(widest, 1); ++x) {
        const int64_t column = s + x < columns ? s + x : s + x - columns;
        for (int64_t k = 0; k < max_of(values, 1); k += kSumBlock)
          product<Product::kReal>(left + x * padded + k, right + (column * padded + k) * kTile, products + s * kTile,
                                  at, count, widest == 0 ? 0 : min_of(kSumBlock, values - k), kTile, x + k > 0);
      }
  }

  // The correlations of 16 pairs as [s][16], per_term still to be applied.
  const float* correlations(const float* products, float* buffer, int64_t& stride) const {
    if (plan != AzimuthPlan::kSpectral) {
      stride = kTile;
      return products;
    }
    stride = 16;
    inverse_transform(products, buffer, {16, 2 * kTile, kTile}, columns, space.table);
    return buffer;
  }

  // Noise of query b and 16 strips as [s][16]; points into the noise itself where that is already so.
  const float* noise_lanes(int64_t b, int64_t r, int64_t count, float* buffer, int64_t& stride) const {
    const int64_t* at = params.noise_stride;
    const float* from = params.noise + b * at[0] + r * at[1];
    if (at[1] == 1 && count == 16) {
      stride = at[2];
      return from;
    }
    stride = 16;
    int64_t s = 0;
    if (at[2] == 1)
      for (; s + 16 <= columns; s += 16) {
        const float* rows[16];
        for (int64_t lane = 0; lane < 16; ++lane) rows[lane] = from + min_of(lane, count - 1) * at[1] + s;
        transpose16(rows, buffer + s * 16, 16);
      }
    for (; s < columns; ++s)
      for (int64_t lane = 0; lane < 16; ++lane)
        buffer[s * 16 + lane] = from[min_of(lane, count - 1) * at[1] + s * at[2]];
    return buffer;
  }

  // Noise is read and slopes are written far apart: asks for them while the products are made. Inlined, since GCC
  // takes a call that only prefetches for one without effect.
  __attribute__((always_inline)) void fetch_ahead(int64_t tile, int64_t i, int64_t count) const {
    const int64_t* stride = params.noise_stride;
    const int64_t r = tile * kTile, last = min_of(kTile, references - r) - 1;
    const bool by_shift = stride[1] == 1;  // else each strip has its shifts together
    for (int64_t m = 0; m < count; ++m) {
      const int64_t b = space.order[i + m];
      const float* noise = params.noise + b * stride[0] + r * stride[1];
      if (by_shift) {
        for (int64_t s = 0; s < columns; ++s)
          for (int64_t lane = 0; lane <= last; lane += 16) __builtin_prefetch(noise + s * stride[2] + lane);
      } else if (stride[2] == 1) {
        for (int64_t lane = 0; lane <= last; ++lane)
          for (int64_t s = 0; s < columns; s += 16) __builtin_prefetch(noise + lane * stride[1] + s);
      }
      if (params.slope == nullptr) continue;
      const float* slope = params.slope + b * columns * references + r;
      for (int64_t s = 0; s < columns; ++s)
        for (int64_t lane = 0; lane <= last; lane += 16) __builtin_prefetch(slope + s * references + lane, 1);
    }
  }

  // gram_windows[lane][a][b] += <column a + x, column b + x> for x = from .. to - 1: with x = 0 .. w - 1 these are the
  // inner products of windows of width w.
  void widen_gram(int64_t tile, int64_t from, int64_t to, float* gram_windows) const {
    const int64_t row = space.strip_rows, count = min_of(kTile, references - tile * kTile);
    for (int64_t lane = 0; lane < count; ++lane) {
      float* out = gram_windows + lane * columns * row;
      const float* gram = space.gram + (tile * kTile + lane) * columns * space.gram_row;
      if (from == 0)
        for (int64_t i = 0; i < columns * row; i += 16) store16(out + i, f32x16{});
      for (int64_t x = from; x < to; ++x)
        for (int64_t a = 0; a < columns; ++a) {
          const float* in = gram + (a + x < columns ? a + x : a + x - columns) * space.gram_row + x;
          for (int64_t b = 0; b < row; b += 16) store16(out + a * row + b, load16(out + a * row + b) + load16(in + b));
        }
    }
  }
};

struct Choice {
  f32x16 value, correlation, norm;  // at the chosen shift
  i32x16 shift;
};

// One query against 16 strips.
template <Selection kSelect, bool kSlope>
void match_lanes(const Forward& w, int64_t tile, int64_t half, int64_t i, const float* products, float* buffers,
                 const float* gram_windows) {
  const MatchSpace& space = w.space;
  const AzimuthMatchParams& p = w.params;
  const int64_t columns = w.columns, r = tile * kTile + half, b = space.order[i];
  const int64_t count = min_of(16, w.references - r);
  float* buffer = buffers;
  float* logits = buffers + 16 * space.strip_rows;
  float* noise_buffer = buffers + 32 * space.strip_rows;
  float* gram_lanes = buffers + 48 * space.strip_rows;
  int64_t stride = 0, noise_stride = 0;
  const float* correlation = w.correlations(products, buffer, stride);
  const float* noise = nullptr;
  if (kSelect == Selection::kGumbel) noise = w.noise_lanes(b, r, count, noise_buffer, noise_stride);
  const int64_t d = space.width_index[i];
  const float* norm = space.window_norm + (tile * space.distinct + d) * columns * kTile + half;
  const float query_norm = space.query_norm[i];
  const f32x16 strip_norm = load16(space.strip_norm + r);
  const f32x16 to_logit =
      load16(space.strip_unit + r) * (static_cast<float>(p.scale / p.tau) * space.query_unit[i] * w.per_term);
  const float per_tau = static_cast<float>(1.0 / p.tau);

  // First the maximum, then where it is: two short chains of operations instead of one long one.
  const float lowest = -__builtin_inff();
  f32x16 top0 = splat(lowest), top1 = splat(lowest);
  i32x16 unordered{};
  for (int64_t s = 0; s < columns; ++s) {
    f32x16 value = load16(correlation + s * stride);
    if (kSelect == Selection::kCosine) value = value * load16(norm + s * kTile);
    if (kSelect == Selection::kGumbel) {
      value = value * to_logit + load16(noise + s * noise_stride) * per_tau;
      unordered |= value != value;
    }
    if (kSelect != Selection::kCorrelation) store16(logits + s * 16, value);
    top0 = larger(value, top0);
    const f32x16 swap = top0;
    top0 = top1;
    top1 = swap;
  }
  const float* values = kSelect == Selection::kCorrelation ? correlation : logits;
  const int64_t value_stride = kSelect == Selection::kCorrelation ? stride : 16;
  Choice best{larger(top0, top1), f32x16{}, f32x16{}, i32x16{}};
  f32x16 second = splat(lowest);
  i32x16 times{};
  for (int64_t s = columns - 1; s >= 0; --s) {
    const f32x16 value = load16(values + s * value_stride);
    const i32x16 here = value == best.value;
    best.correlation = pick(here, load16(correlation + s * stride), best.correlation);
    best.norm = pick(here, load16(norm + s * kTile), best.norm);
    best.shift = pick(here, splat_int(static_cast<int32_t>(s)), best.shift);
    times -= here;
    second = larger(pick(here, splat(lowest), value), second);
  }
  second = pick(times > 1, best.value, second);

  // How far below the best another shift may have been computed and still be the true one.
  const f32x16 error = strip_norm * (w.error / w.per_term / (query_norm > 0 ? query_norm : 1.0f));
  f32x16 reach = error * 2.0f;
  if (kSelect == Selection::kCosine)
    reach = reach * load16(space.largest_norm + (tile * space.distinct + d) * kTile + half);
  if (kSelect == Selection::kGumbel) {
    const f32x16 size = pick(to_logit < 0.0f, -to_logit, to_logit);
    const f32x16 top = pick(best.value < 0.0f, -best.value, best.value);
    reach = reach * size * 1.01f +
            (top + strip_norm * size * (1.0f / w.per_term / (query_norm > 0 ? query_norm : 1.0f))) * kLogitRounding;
  }
  const bool silent = query_norm == 0 && kSelect != Selection::kGumbel;  // everything is 0: shift 0
  i32x16 close = silent ? i32x16{} : second >= best.value - reach;
  if (kSelect != Selection::kGumbel) close &= strip_norm > 0.0f;
  const i32x16 thin = best.norm * strip_norm > kThinWindow;
  i32x16 broken = load16(space.strip_broken + r) | splat_int(space.query_broken[i] ? -1 : 0);
  // A softmax with NaN or +Inf in it, or of nothing but -Inf.
  if (kSelect == Selection::kGumbel) broken |= unordered | ~((best.value < __builtin_inff()) & (best.value > lowest));
  if (any((close | thin) & ~broken)) {
    float patched_correlation[16], patched_norm[16], top[16], reaches[16];
    int32_t patched_shift[16];
    store16(patched_correlation, best.correlation), store16(patched_norm, best.norm), store16(top, best.value);
    store16(reaches, reach), store16(patched_shift, best.shift);
    for (int lane = 0; lane < count; ++lane) {
      if (!((close[lane] | thin[lane]) & ~broken[lane])) continue;
      int64_t shift = patched_shift[lane];
      double exact = w.exact_correlation(i, r + lane, shift);
      if (close[lane]) {
        double best_value = 0;
        bool found = false;
        for (int64_t s = 0; s < columns; ++s) {
          if (!(values[s * value_stride + lane] >= top[lane] - reaches[lane])) continue;
          const double c = s == patched_shift[lane] ? exact : w.exact_correlation(i, r + lane, s);
          double value = c;
          if (kSelect == Selection::kCosine)
            value = norm[s * kTile + lane] > 0 ? c / __builtin_sqrt(w.exact_energy(r + lane, s, space.width[i])) : 0.0;
          if (kSelect == Selection::kGumbel)
            value = (p.scale * (c * static_cast<double>(space.query_unit[i]) *
                                static_cast<double>(space.strip_unit[r + lane])) +
                     static_cast<double>(noise[s * noise_stride + lane])) /
                    p.tau;
          if (!found || value > best_value) best_value = value, shift = s, found = true;
        }
        if (shift != patched_shift[lane]) exact = w.exact_correlation(i, r + lane, shift);
      }
      patched_shift[lane] = static_cast<int32_t>(shift);
      patched_norm[lane] = norm[shift * kTile + lane];
      patched_correlation[lane] = static_cast<float>(exact) / w.per_term;
    }
    best.correlation = load16(patched_correlation), best.norm = load16(patched_norm);
    best.shift = load16(patched_shift);
  }

  const f32x16 cosine_of = best.norm * (query_norm * w.per_term);
  f32x16 score = best.correlation * cosine_of;
  score = pick(score > 1.0f, splat(1.0f), pick(score < -1.0f, splat(-1.0f), score));
  const f32x16 nan = splat(__builtin_nanf(""));
  if (kSlope) {
    int32_t shifts[16];
    store16(shifts, best.shift);
    const float* rows[16];
    for (int64_t s = 0; s < columns; s += 16) {
      for (int64_t lane = 0; lane < 16; ++lane)
        rows[lane] = gram_windows +
                     ((half + min_of(lane, count - 1)) * columns + shifts[min_of(lane, count - 1)]) * space.strip_rows +
                     s;
      transpose16(rows, gram_lanes + s * 16, 16);
    }
    const f32x16 fall = score * best.norm * best.norm;
    f32x16 total{}, mean{};
    for (int64_t s = 0; s < columns; ++s) {
      const f32x16 share = exp_of_negative(load16(logits + s * 16) - best.value);
      const f32x16 change = load16(correlation + s * stride) * cosine_of - load16(gram_lanes + s * 16) * fall;
      total += share;
      mean += share * change;
      store16(logits + s * 16, share);
      store16(gram_lanes + s * 16, change);
    }
    const f32x16 per_total = 1.0f / total;
    mean = mean * per_total;
    f32x16 scale_slope{};
    float* out = p.slope + (b * columns) * w.references + r;
    for (int64_t s = 0; s < columns; ++s) {
      f32x16 slope = load16(logits + s * 16) * per_total * (load16(gram_lanes + s * 16) - mean);
      slope = pick(broken, f32x16{}, slope);
      scale_slope += slope * load16(correlation + s * stride);
      store_lanes(out + s * w.references, slope, count);
    }
    scale_slope = scale_slope * load16(space.strip_unit + r) * (space.query_unit[i] * per_tau * w.per_term);
    store_lanes(p.scale_slope + b * w.references + r, scale_slope, count);
  }
  score = pick(broken, nan, score);
  best.shift = pick(broken, i32x16{}, best.shift);
  store_lanes(p.score + b * w.references + r, score, count);
  int32_t shifts[16];
  store16(shifts, best.shift);
  for (int64_t lane = 0; lane < count; ++lane) p.shift[b * w.references + r + lane] = shifts[lane];
}

template <Selection kSelect, bool kSlope>
void match_tile(const Forward& w, int64_t tile, int64_t begin, int64_t end, char* scratch) {
  const MatchSpace& space = w.space;
  const int64_t numbers = w.plan == AzimuthPlan::kSpectral ? 2 * space.frequencies : w.columns;
  float* products = take_floats(scratch, kQueryBlock * kTile * numbers);
  float* buffers = take_floats(scratch, 4 * 16 * space.strip_rows);
  float* gram_windows = kSlope ? take_floats(scratch, kTile * w.columns * space.strip_rows) : nullptr;
  int64_t width = -1;
  for (int64_t i = begin; i < end; i += kQueryBlock) {
    const int64_t count = min_of(kQueryBlock, end - i);
    if (kSelect == Selection::kGumbel) w.fetch_ahead(tile, i, count);
    w.multiply(tile, i, count, products);
    for (int64_t m = 0; m < count; ++m) {
      if (kSlope && space.width[i + m] != width) {
        w.widen_gram(tile, width < 0 ? 0 : width, space.width[i + m], gram_windows);
        width = space.width[i + m];
      }
      for (int64_t half = 0; half < kTile && tile * kTile + half < w.references; half += 16)
        match_lanes<kSelect, kSlope>(w, tile, half, i + m, products + m * numbers * kTile + half, buffers,
                                     gram_windows);
    }
  }
}

// Queries are packed this many to a task.
constexpr int64_t kPackBlock = 16;

struct Backward : Pairs {
  const AzimuthMatchBackwardParams& params;

  Backward(const AzimuthMatchBackwardParams& p, const AzimuthMatchSize& size, int threads)
      : Pairs(p.query, p.strips, p.query_width, size, p.plan, threads, p.workspace), params(p) {}

  void pack_tile(int64_t tile, char* scratch) const {
    float* rows = take_floats(scratch, space.padded * space.strip_rows);
    const TransformLayout at{space.padded, space.strip_slot, space.padded};
    for (int64_t r = tile * kTile; r < (tile + 1) * kTile; ++r) {
      if (r >= references) {
        pack_nothing(r);
        continue;
      }
      pack_strip(r, rows, scratch);
      if (plan != AzimuthPlan::kSpectral) continue;
      for (int64_t k = 0; k < space.padded; k += 16)
        forward_transform(strip_column(r, 0) + k, columns, space.strip_spectra + r * 2 * space.padded + k, at, columns,
                          space.table);
    }
  }

  // The weights of packed query i for every strip, transformed if the plan wants that, and what the norms take.
  void weigh(int64_t i, char* scratch) const {
    float* buffer = take_floats(scratch, 16 * columns);
    const int64_t b = space.order[i], d = space.width_index[i];
    const float query_norm = space.query_norm[i];
    const bool gumbel = params.slope != nullptr, spectral = plan == AzimuthPlan::kSpectral;
    const float to_logit = gumbel ? static_cast<float>(params.scale / params.tau) * space.query_unit[i] : 0.0f;
    f64x8 score_sum{}, scale_sum{};
    for (int64_t r = 0; r < space.lanes; r += 16) {
      const int64_t count = min_of(16, references - r), at = b * references + r;
      f32x16 g{}, score{}, scale_slope{};
      i32x16 shift{};
      if (count > 0) {
        g = load_lanes(params.grad_score + at, count);
        score = load_lanes(params.score + at, count);
        if (gumbel) scale_slope = load_lanes(params.scale_slope + at, count);
        int32_t shifts[16] = {};
        for (int64_t lane = 0; lane < count; ++lane) shifts[lane] = static_cast<int32_t>(params.shift[at + lane]);
        shift = load16(shifts);
      }
      const i32x16 broken = score != score;
      g = pick(broken, f32x16{}, g);
      score = pick(broken, f32x16{}, score);
      scale_slope = pick(broken, f32x16{}, scale_slope);
      const float* norms = space.window_norm + (r / kTile * space.distinct + d) * columns * kTile + r % kTile;
      f32x16 norm{};
      if (spectral) {
        const f32x16 soft = g * load16(space.strip_unit + r) * to_logit, hard = g * query_norm;
        const float* slope = params.slope + b * columns * references + r;
        for (int64_t s = 0; s < columns; ++s) {
          if (gumbel) __builtin_prefetch(slope + s * references + 32);
          const i32x16 chosen = shift == static_cast<int32_t>(s);
          const f32x16 here = pick(chosen, load16(norms + s * kTile), f32x16{});
          f32x16 weight = hard * here;
          if (gumbel && count > 0) weight += soft * load_lanes(slope + s * references, count);
          norm += here;
          store16(buffer + s * 16, weight);
        }
        forward_transform(buffer, columns, space.weights + i * 2 * space.lanes + r,
                          {16, space.weight_slot, space.lanes}, columns, space.table);
      } else {
        float chosen[16] = {};
        for (int64_t lane = 0; lane < count; ++lane) chosen[lane] = norms[params.shift[at + lane] * kTile + lane];
        norm = load16(chosen);
        store16(space.weights + i * space.lanes + r, g * query_norm * norm);
      }
      const f32x16 taken = g * score;
      store16(space.norm_weights + i * space.lanes + r, taken * norm * norm);
      float lanes[32];
      store16(lanes, taken);
      store16(lanes + 16, g * scale_slope);
      score_sum += low_doubles(lanes) + low_doubles(lanes + 8);
      scale_sum += low_doubles(lanes + 16) + low_doubles(lanes + 24);
    }
    space.query_sum[i] = sum_of(score_sum);
    space.scale_sum[i] = sum_of(scale_sum);
  }

  // What the norm of the windows takes off the columns of strips r .. r + count - 1: taken[m][x] per unit of column.
  void norm_share(int64_t r, int64_t count, float* taken, float* by_shift) const {
    const int64_t row = space.gram_row;
    for (int64_t n = 0; n < count * row; ++n) taken[n] = 0;
    for (int64_t n = 0; n < count * columns; ++n) by_shift[n] = 0;
    for (int64_t i = 0; i < batch; ++i) {
      const int64_t* shift = params.shift + space.order[i] * references + r;
      const float* weight = space.norm_weights + i * space.lanes + r;
      for (int64_t m = 0; m < count; ++m) by_shift[m * columns + shift[m]] += weight[m];
      if (i + 1 < batch && space.width[i + 1] == space.width[i]) continue;
      for (int64_t m = 0; m < count; ++m) {
        for (int64_t x = 0; x < space.width[i]; ++x)
          for (int64_t s = 0; s < columns; ++s) taken[m * row + s + x] += by_shift[m * columns + s];
        for (int64_t s = 0; s < columns; ++s) by_shift[m * columns + s] = 0;
      }
    }
    for (int64_t m = 0; m < count; ++m)
      for (int64_t x = 0; x < columns; ++x) taken[m * row + x] += taken[m * row + columns + x];
  }

  // Gradient of a packed strip's or query's columns k .. k + count: (sum - share * value) / unit, to its place.
  void query_out(int64_t i, float* gradient, int64_t padded, float per_term, int64_t k, int64_t count) const {
    const int64_t width = space.width[i];
    const float inverse = 1.0f / space.query_unit[i], norm = space.query_norm[i];
    const float share = static_cast<float>(space.query_sum[i]) * norm * norm;
    for (int64_t x = 0; x < query_columns; ++x) {
      const float* value = space.query_columns + (i * query_columns + x) * space.padded + k;
      float* out = gradient + x * padded;
      for (int64_t n = 0; n < round_up(count, 16); n += 16)
        store16(out + n, x < width ? (load16(out + n) * per_term - load16(value + n) * share) * inverse : f32x16{});
    }
    columns_to_rows(gradient, padded, count, query_columns,
                    params.grad_query + (space.order[i] * values + k) * query_columns);
  }

  void strip_out(int64_t r, float* gradient, int64_t padded, float per_term, int64_t k, int64_t count,
                 const float* taken) const {
    const float inverse = 1.0f / space.strip_unit[r];
    for (int64_t x = 0; x < columns; ++x) {
      const float* value = strip_column(r, x) + k;
      float* out = gradient + x * padded;
      for (int64_t n = 0; n < round_up(count, 16); n += 16)
        store16(out + n, (load16(out + n) * per_term - load16(value + n) * taken[x]) * inverse);
    }
    columns_to_rows(gradient, padded, count, columns, params.grad_strips + (r * values + k) * columns);
  }

  // Rows first .. first + count - 1 of one gradient, values k .. k + kValueBlock - 1, by products per frequency.
  template <bool kOfQuery>
  void gradient_by_product(int64_t first, int64_t count, int64_t k, char* scratch) const {
    const int64_t padded = space.padded, terms = kOfQuery ? references : batch;
    const int64_t lanes = min_of(kValueBlock, padded - k);
    float* spectra = take_floats(scratch, space.frequencies * kRowBlock * 2 * kValueBlock);
    float* gradient = take_floats(scratch, columns * kValueBlock);
    float* ordered = take_floats(scratch, 2 * kOrderedRow * kReduceBlock);
    float* taken = take_floats(scratch, kRowBlock * space.gram_row);
    float* by_shift = take_floats(scratch, kRowBlock * columns);
    const int64_t slot = kRowBlock * 2 * kValueBlock;
    for (int64_t f = 0; f < space.frequencies; ++f) {
      const float* weights = space.weights + f * space.weight_slot;
      const float* other =
          kOfQuery ? space.strip_spectra + f * space.strip_slot : space.query_spectra + f * space.query_slot;
      int64_t term = 0;
      do {
        const int64_t block = min_of(kReduceBlock, terms - term);
        ProductLayout at{2 * space.lanes, 1, space.lanes, 2 * padded, padded, 2 * kValueBlock, kValueBlock};
        const float* left = weights + first * 2 * space.lanes + term;
        if (!kOfQuery) {
          for (int64_t t = 0; t < block; ++t) {
            const float* from = weights + (term + t) * 2 * space.lanes + first;
            for (int64_t m = 0; m < count; m += 16) {  // what is read past the rows is not used
              store16(ordered + t * 2 * kOrderedRow + m, load16(from + m));
              store16(ordered + (t * 2 + 1) * kOrderedRow + m, load16(from + space.lanes + m));
            }
          }
          left = ordered;
          at.left_row = 1, at.left_term = 2 * kOrderedRow, at.left_second = kOrderedRow;
        }
        const float* right = other + term * 2 * padded + k;
        if (f == 0)
          product<Product::kPairwise>(left, right, spectra, at, count, block, lanes, term > 0);
        else if (kOfQuery)
          product<Product::kConjugate>(left, right, spectra + f * slot, at, count, block, lanes, term > 0);
        else
          product<Product::kComplex>(left, right, spectra + f * slot, at, count, block, lanes, term > 0);
        term += kReduceBlock;
      } while (term < terms);
    }
    if (!kOfQuery) norm_share(first, count, taken, by_shift);
    const float per_term = static_cast<float>(1.0 / static_cast<double>(columns));
    for (int64_t m = 0; m < count; ++m) {
      for (int64_t n = 0; n < lanes; n += 16)
        inverse_transform(spectra + m * 2 * kValueBlock + n, gradient + n, {kValueBlock, slot, kValueBlock}, columns,
                          space.table);
      const int64_t kept = min_of(kValueBlock, values - k);
      if (kOfQuery)
        query_out(first + m, gradient, kValueBlock, per_term, k, kept);
      else
        strip_out(first + m, gradient, kValueBlock, per_term, k, kept, taken + m * space.gram_row);
    }
  }

  // Up to four windows, each with its weight and its length in floats.
  struct Windows {
    const float* from[4];
    float weight[4];
    int64_t length[4];
    int64_t count = 0;

    void add(const float* window, float by, int64_t n) {
      from[count] = window, weight[count] = by, length[count] = n;
      ++count;
    }
  };

  // to[j] += sum of the windows, which come in the order of their lengths; empties them.
  static void add_windows(float* to, Windows& windows) {
    int64_t j = 0;
    if (windows.count == 4) {
      const float *a = windows.from[0], *b = windows.from[1], *c = windows.from[2], *d = windows.from[3];
      const f32x16 wa = splat(windows.weight[0]), wb = splat(windows.weight[1]), wc = splat(windows.weight[2]),
                   wd = splat(windows.weight[3]);
      for (; j < windows.length[0]; j += 16)
        store16(to + j,
                load16(to + j) + load16(a + j) * wa + load16(b + j) * wb + load16(c + j) * wc + load16(d + j) * wd);
    }
    const int64_t common = j;
    for (int64_t n = 0; n < windows.count; ++n) {
      const f32x16 w = splat(windows.weight[n]);
      for (j = common; j < windows.length[n]; j += 16)
        store16(to + j, load16(to + j) + load16(windows.from[n] + j) * w);
    }
    windows.count = 0;
  }

  // Strip r: its queries with the same shift one after another, so that they are added four at a time.
  void add_queries(int64_t r, float* sums, int32_t* sorted, int32_t* begin) const {
    for (int64_t s = 0; s <= columns; ++s) begin[s] = 0;
    for (int64_t i = 0; i < batch; ++i) ++begin[params.shift[space.order[i] * references + r] + 1];
    for (int64_t s = 0; s < columns; ++s) begin[s + 1] += begin[s];
    for (int64_t i = 0; i < batch; ++i)
      sorted[begin[params.shift[space.order[i] * references + r]]++] = static_cast<int32_t>(i);
    Windows windows;
    for (int64_t s = 0, n = 0; s < columns; ++s) {
      for (; n < begin[s]; ++n) {
        const int64_t i = sorted[n];
        windows.add(space.query_columns + i * query_columns * space.padded, space.weights[i * space.lanes + r],
                    space.width[i] * space.padded);
        if (windows.count == 4) add_windows(sums + s * space.padded, windows);
      }
      add_windows(sums + s * space.padded, windows);
    }
  }

  // Query i: its windows of strips begin .. end - 1.
  void add_strips(int64_t i, int64_t begin, int64_t end, float* sums) const {
    Windows windows;
    for (int64_t r = begin; r < end; ++r) {
      const int64_t shift = params.shift[space.order[i] * references + r];
      windows.add(space.strip_columns + (r * space.strip_width + shift) * space.padded,
                  space.weights[i * space.lanes + r], space.width[i] * space.padded);
      if (windows.count == 4) add_windows(sums, windows);
    }
    add_windows(sums, windows);
  }

  // The same where every pair has one window: windows are added up.
  template <bool kOfQuery>
  void gradient_by_scatter(int64_t first, int64_t count, char* scratch) const {
    // Windows past the seam lie in the columns written twice: read there, and folded back below.
    const int64_t padded = space.padded, row = (kOfQuery ? query_columns : space.strip_width) * padded;
    float* sums = take_floats(scratch, kScatterBlock * space.strip_width * padded);
    float* taken = take_floats(scratch, kRowBlock * space.gram_row);
    float* by_shift = take_floats(scratch, kRowBlock * columns);
    for (int64_t j = 0; j < count * row; j += 16) store16(sums + j, f32x16{});
    if (kOfQuery) {
      for (int64_t begin = 0; begin < references; begin += kScatterOthers)
        for (int64_t m = 0; m < count; ++m)
          add_strips(first + m, begin, min_of(begin + kScatterOthers, references), sums + m * row);
    } else {
      int32_t* sorted = reinterpret_cast<int32_t*>(take_floats(scratch, batch));
      int32_t* starts = reinterpret_cast<int32_t*>(take_floats(scratch, columns + 1));
      for (int64_t m = 0; m < count; ++m) add_queries(first + m, sums + m * row, sorted, starts);
    }
    if (!kOfQuery)
      for (int64_t m = 0; m < count; ++m)
        for (int64_t j = columns * padded; j < row; j += 16) {
          float* to = sums + m * row + j - columns * padded;
          store16(to, load16(to) + load16(sums + m * row + j));
        }
    if (!kOfQuery) norm_share(first, count, taken, by_shift);
    for (int64_t m = 0; m < count; ++m) {
      if (kOfQuery)
        query_out(first + m, sums + m * row, padded, 1.0f, 0, values);
      else
        strip_out(first + m, sums + m * row, padded, 1.0f, 0, values, taken + m * space.gram_row);
    }
  }
};

AzimuthMatchSize size_of(const StripTensor& query, const StripTensor& strips, const int64_t* query_width,
                         Selection select, bool slope, bool backward) {
  return {query.items,   strips.items,   query.channels * query.height,
          query.columns, strips.columns, query_width != nullptr,
          select,        slope,          backward};
}

bool sound(const StripTensor& query, const StripTensor& strips) {
  return query.channels == strips.channels && query.height == strips.height && query.columns >= 1 &&
         query.columns <= strips.columns && query.items < INT32_MAX && strips.columns < INT32_MAX / 4;
}

bool known(DType dtype) { return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

}  // namespace

Status azimuth_match(const AzimuthMatchParams& p, int threads) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  if (!sound(p.query, p.strips)) return Status::kBadSize;
  if (p.query.items == 0 || p.strips.items == 0) return Status::kOk;
  const AzimuthMatchSize size = size_of(p.query, p.strips, p.query_width, p.select, p.slope != nullptr, false);
  const Forward work(p, size, threads);
  const int64_t tiles = work.space.tiles, batch = work.batch;
  const int64_t query_tasks = ceil_div(batch, kPackBlock);
  run_tasks(work.space, tiles + query_tasks, threads, [&](int64_t task, char* scratch) {
    if (task < tiles) return work.pack_tile(task, scratch);
    const int64_t first = (task - tiles) * kPackBlock;
    for (int64_t i = first; i < min_of(first + kPackBlock, batch); ++i) work.pack_query(i, scratch);
  });
  // Enough pieces for the threads, each whole blocks of queries: the results do not depend on how many.
  const int64_t wanted = max_of(1, ceil_div(4 * max_of(threads, 1), tiles));
  const int64_t piece = round_up(ceil_div(batch, min_of(wanted, ceil_div(batch, kQueryBlock))), kQueryBlock);
  const int64_t pieces = ceil_div(batch, piece);
  run_tasks(work.space, tiles * pieces, threads, [&](int64_t task, char* scratch) {
    const int64_t tile = task / pieces, begin = task % pieces * piece, end = min_of(begin + piece, batch);
    switch (p.select) {
      case Selection::kCorrelation: return match_tile<Selection::kCorrelation, false>(work, tile, begin, end, scratch);
      case Selection::kCosine: return match_tile<Selection::kCosine, false>(work, tile, begin, end, scratch);
      case Selection::kGumbel:
        if (p.slope != nullptr) return match_tile<Selection::kGumbel, true>(work, tile, begin, end, scratch);
        return match_tile<Selection::kGumbel, false>(work, tile, begin, end, scratch);
    }
  });
  return Status::kOk;
}

Status azimuth_match_backward(const AzimuthMatchBackwardParams& p, int threads) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  if (!sound(p.query, p.strips)) return Status::kBadSize;
  const AzimuthMatchSize size = size_of(p.query, p.strips, p.query_width, p.select, false, true);
  const Backward work(p, size, threads);
  const int64_t tiles = work.space.tiles, batch = work.batch, references = work.references;
  const int64_t query_tasks = ceil_div(batch, kPackBlock);
  run_tasks(work.space, tiles + query_tasks, threads, [&](int64_t task, char* scratch) {
    if (task < tiles) return work.pack_tile(task, scratch);
    const int64_t first = (task - tiles) * kPackBlock;
    for (int64_t i = first; i < min_of(first + kPackBlock, batch); ++i) work.pack_query(i, scratch);
  });
  run_tasks(work.space, batch, threads, [&](int64_t i, char* scratch) { work.weigh(i, scratch); });
  if (p.grad_scale != nullptr) {
    double sum = 0;
    for (int64_t i = 0; i < batch; ++i) sum += work.space.scale_sum[i];
    *p.grad_scale = sum;
  }
  if (p.plan == AzimuthPlan::kSpectral) {
    const int64_t value_blocks = ceil_div(work.space.padded, kValueBlock);
    int64_t block = kRowBlock;
    while (block > kQueryBlock && ceil_div(batch + references, block) * value_blocks < 4 * threads) block /= 2;
    const int64_t of_query = ceil_div(batch, block), of_strips = ceil_div(references, block);
    run_tasks(work.space, (of_query + of_strips) * value_blocks, threads, [&](int64_t task, char* scratch) {
      const int64_t k = task % value_blocks * kValueBlock;
      task /= value_blocks;
      if (task < of_query) {
        work.gradient_by_product<true>(task * block, min_of(block, batch - task * block), k, scratch);
      } else {
        task -= of_query;
        work.gradient_by_product<false>(task * block, min_of(block, references - task * block), k, scratch);
      }
    });
    return Status::kOk;
  }
  int64_t block = kScatterBlock;
  while (block > 4 && ceil_div(batch + references, block) < 4 * threads) block /= 2;
  const int64_t of_query = ceil_div(batch, block), of_strips = ceil_div(references, block);
  run_tasks(work.space, of_query + of_strips, threads, [&](int64_t task, char* scratch) {
    if (task < of_query)
      work.gradient_by_scatter<true>(task * block, min_of(block, batch - task * block), scratch);
    else
      work.gradient_by_scatter<false>((task - of_query) * block, min_of(block, references - (task - of_query) * block),
                                      scratch);
  });
  return Status::kOk;
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
