// Device bodies of azimuth_match, forward. Formula: geoloc_fast/azimuth_match.h; costs: azimuth_match_heuristics.h.
// SPDX-License-Identifier: Apache-2.0
//
// A block takes 32 queries x 32 (16) strips. Its warps make the products, one slot each (azimuth_product.cuh), and put
// them down as [W][32][strips]; then a thread takes a pair: its W numbers are transformed in registers and become
// correlations in the same place, from which shift, score and slopes follow. Noise is read and slopes are written with
// neighbouring strips in neighbouring lanes: 128 bytes a warp where noise lies that way too.
//
// Pairs whose two best shifts are closer than the rounding error bound, and scores of thin windows, are summed again in
// float64 from the inputs as given, by a whole warp for each.
#pragma once
#include "cuda/azimuth_operands.cuh"
#include "cuda/azimuth_product.cuh"

namespace geoloc_fast::cuda {

constexpr float kThinWindow = 8.0f;        // |strip| / |window| from which the score is summed in float64
constexpr float kLogitRounding = 6.0e-7f;  // of a logit relative to its size

// Bound of |computed - exact correlation| / (|query| |strip|): chains of at most kTermBlock multiply-adds, then one of
// partial sums; three transforms besides in the spectral plan.
inline float correlation_error(AzimuthPlan plan, int64_t terms, int64_t columns) {
  constexpr double kUnit = 1.0 / 16777216.0;
  const double chain = static_cast<double>(min_of(terms, kTermBlock) + ceil_div(terms, kTermBlock) + 4);
  if (plan != AzimuthPlan::kSpectral) return static_cast<float>(kUnit * chain);
  double levels = 1;
  for (int64_t n = 1; n < columns; n *= 2) ++levels;
  return static_cast<float>(kUnit * (2 * chain + 12 * levels));
}

struct MatchArguments {
  AzimuthMatchParams p;
  MatchSpace space;
  int32_t terms, padded;           // of a product; values of an item as operands hold them
  int64_t query_tile, strip_tile;  // floats of a tile of an operand
  int64_t blocks_of_strips, tiles;
  float error;
  bool overlay;
};

// What a warp needs to sum a pair again.
struct PairAgain {
  int32_t query, strip, pair, shift;
  float floor;  // shifts whose value is at least this may be the true one
  uint32_t close;
};

// The products of a block's pairs: correlation of pair n at shift s is at[s * pairs + n].
template <int kPairs>
struct Correlations {
  float* at;
  __device__ float operator()(int64_t s, int pair) const { return at[s * kPairs + pair]; }
};

// <query, window at s> and the window's energy, packed, in float64. The whole warp.
__device__ __forceinline__ double exact_correlation(const MatchArguments& it, int64_t b, int64_t r, int64_t s,
                                                    int64_t width, double* energy) {
  const StripTensor &q = it.p.query, &t = it.p.strips;
  const int64_t values = q.channels * q.height;
  double sum = 0, squares = 0;
  for (int64_t k = lane_id(); k < values; k += 32) {
    const int64_t of_query = value_offset(q, b, k), of_strip = value_offset(t, r, k);
    for (int64_t x = 0; x < width; ++x) {
      const int64_t column = s + x < t.columns ? s + x : s + x - t.columns;
      const double value = static_cast<double>(value_at(t, of_strip + column * t.stride[3]));
      sum += value * static_cast<double>(value_at(q, of_query + x * q.stride[3]));
      squares += value * value;
    }
  }
  const double inverse = static_cast<double>(it.space.strips.inverse[r]);
  if (energy != nullptr) *energy = warp_sum(squares) * inverse * inverse;
  return warp_sum(sum) * inverse * static_cast<double>(it.space.query.inverse[b]);
}

// The shift of float64 arithmetic and the correlation there. The whole warp, with the same arguments.
template <int kPairs>
__device__ __forceinline__ double sum_again(const MatchArguments& it, const Correlations<kPairs>& correlation,
                                            const PairAgain& again, int32_t* shift) {
  const AzimuthMatchParams& p = it.p;
  const int64_t b = again.query, r = again.strip, columns = p.strips.columns;
  const int64_t width = width_of(p.query_width, b, p.query.columns);
  *shift = again.shift;
  if (!again.close) return exact_correlation(it, b, r, again.shift, width, nullptr);
  const double* before = it.space.strips.column_sum + r * (columns + 1);
  const float* noise = p.noise + b * p.noise_stride[0] + r * p.noise_stride[1];
  const double unit = static_cast<double>(it.space.query.unit[b]) * static_cast<double>(it.space.strips.unit[r]);
  const double scale = p.select == Selection::kGumbel ? *p.device_scale : 1.0;
  const float to_logit = static_cast<float>(scale / p.tau * unit), per_tau = static_cast<float>(1.0 / p.tau);
  double best = 0, chosen = 0;
  bool found = false;
  for (int64_t s = 0; s < columns; ++s) {
    const float computed = correlation(s, again.pair);
    float value = computed;
    if (p.select == Selection::kCosine) value = computed * window_norm(before, columns, s, width);
    if (p.select == Selection::kGumbel) value = fmaf(noise[s * p.noise_stride[2]], per_tau, computed * to_logit);
    if (!(value >= again.floor)) continue;
    double energy = 0;
    const double exact = exact_correlation(it, b, r, s, width, &energy);
    double compared = exact;
    if (p.select == Selection::kCosine)
      compared = window_norm(before, columns, s, width) > 0 ? exact / sqrt(energy) : 0.0;
    if (p.select == Selection::kGumbel)
      compared = (scale * (exact * unit) + static_cast<double>(noise[s * p.noise_stride[2]])) / p.tau;
    if (!found || compared > best) best = compared, chosen = exact, *shift = static_cast<int32_t>(s), found = true;
  }
  return chosen;
}

// W = 0: any number of columns, the products are the correlations themselves ("direct").
template <int W, bool kSlope, int kPairs, int kStrips>
__device__ __forceinline__ void match_pair(const MatchArguments& it, int64_t first_query, int64_t first_strip, int pair,
                                           float* products) {
  constexpr bool kKeep = W > 0 && W <= 16;  // values of all shifts in registers
  const AzimuthMatchParams& p = it.p;
  const int64_t columns = W > 0 ? W : p.strips.columns, references = p.strips.items;
  const Correlations<kPairs> correlation{products};
  const int64_t asked_b = first_query + pair / kStrips, asked_r = first_strip + pair % kStrips;
  const bool there = asked_b < p.query.items && asked_r < references;
  // A pair past the end is computed from the last one's facts, like any other, and not written.
  const int64_t b = min_of(asked_b, p.query.items - 1), r = min_of(asked_r, references - 1);
  if constexpr (W > 0) {
    float values[W > 0 ? W : 4];
#pragma unroll
    for (int n = 0; n < W; ++n) values[n] = products[n * kPairs + pair];
    inverse_transform(values);
#pragma unroll
    for (int n = 0; n < W; ++n) products[n * kPairs + pair] = values[n] * (1.0f / W);
  }

  const bool gumbel = kSlope || p.select == Selection::kGumbel, cosine = !kSlope && p.select == Selection::kCosine;
  const int64_t width = width_of(p.query_width, b, p.query.columns);
  const double* before = it.space.strips.column_sum + r * (columns + 1);
  const float query_length = it.space.query.norm[b], strip_length = it.space.strips.norm[r];
  const float query_norm = query_length > 0 ? 1.0f / query_length : 0.0f;
  const float* noise = gumbel ? p.noise + b * p.noise_stride[0] + r * p.noise_stride[1] : nullptr;
  const int64_t noise_step = p.noise_stride[2];
  const float unit = it.space.query.unit[b] * it.space.strips.unit[r], per_tau = static_cast<float>(1.0 / p.tau);
  const float to_logit =
      gumbel ? static_cast<float>(*p.device_scale / p.tau * static_cast<double>(it.space.query.unit[b]) *
                                  static_cast<double>(it.space.strips.unit[r]))
             : 0.0f;
  const float lowest = -INFINITY;
  float best = lowest, second = lowest, largest_norm = 0.0f;
  float kept[kKeep ? W : 1];  // logits
  int32_t shift = 0;
  bool unordered = false;
#pragma unroll(kKeep ? W : 4)
  for (int64_t s = 0; s < columns; ++s) {
    float value = correlation(s, pair);
    if (cosine) {
      const float norm = window_norm(before, columns, s, width);
      largest_norm = fmaxf(largest_norm, norm);
      value *= norm;
    }
    if (gumbel) {
      value = fmaf(noise[s * noise_step], per_tau, value * to_logit);
      unordered = unordered || value != value;
      if constexpr (kKeep && kSlope) kept[s] = value;
    }
    if (value > best) {
      second = best;
      best = value;
      shift = static_cast<int32_t>(s);
    } else {
      second = fmaxf(second, value);
    }
  }

  // How far below the best another shift may have been computed and still be the true one.
  const float error = it.error * query_length * strip_length;
  float reach = 2.0f * error;
  if (cosine) reach *= largest_norm;
  if (gumbel)
    reach = reach * fabsf(to_logit) * 1.01f +
            (fabsf(best) + strip_length * query_length * fabsf(to_logit)) * kLogitRounding;
  bool broken = it.space.query.broken[b] != 0 || it.space.strips.broken[r] != 0;
  // A softmax with NaN or +Inf in it, or of nothing but -Inf.
  if (gumbel) broken = broken || unordered || !(best < INFINITY && best > lowest);
  bool close = second >= best - reach && columns > 1;
  if (!gumbel) close = close && query_length > 0 && strip_length > 0;  // else everything is 0: shift 0
  float norm = window_norm(before, columns, shift, width);
  const bool thin = norm * strip_length > kThinWindow;
  float chosen = correlation(shift, pair);
  bool score_exact = false;
  for (uint32_t todo = ballot(there && !broken && (close || thin)); todo != 0; todo &= todo - 1) {
    const int lane = __ffs(todo) - 1;
    PairAgain again;
    again.query = shuffle(static_cast<int32_t>(b), lane);
    again.strip = shuffle(static_cast<int32_t>(r), lane);
    again.pair = shuffle(pair, lane);
    again.shift = shuffle(shift, lane);
    again.floor = shuffle(best - reach, lane);
    again.close = shuffle(close ? 1u : 0u, lane);
    int32_t found;
    const double exact = sum_again<kPairs>(it, correlation, again, &found);
    if (lane == lane_id()) shift = found, chosen = static_cast<float>(exact), score_exact = true;
  }
  if (score_exact) norm = window_norm(before, columns, shift, width);

  const float cosine_of = norm * query_norm;
  const float score = fminf(fmaxf(chosen * cosine_of, -1.0f), 1.0f);
  if (there) {
    p.score[b * references + r] = broken ? NAN : score;
    p.shift[b * references + r] = broken ? 0 : shift;
  }
  if constexpr (kSlope) {
    if (!there) return;
    float* slope = p.slope + b * columns * references + r;
    if (broken) {
      for (int64_t s = 0; s < columns; ++s) slope[s * references] = 0.0f;
      p.scale_slope[b * references + r] = 0.0f;
      return;
    }
    const double* gram = it.space.gram + r * (columns + 1) * columns;
    const double* begin = gram + shift * columns;
    const int64_t past = shift + width;
    const double* end = gram + (past <= columns ? past : past - columns) * columns;
    const double* whole = gram + columns * columns;  // added where the window passes the seam
    const float fall = score * norm * norm;
    // How the score changes with the weight of the window at s.
    auto change = [&](int64_t s) {
      const int64_t d = s >= shift ? s - shift : s - shift + columns;
      double product = end[d] - begin[d];
      if (past > columns) product = whole[d] - begin[d] + end[d];
      return correlation(s, pair) * cosine_of - static_cast<float>(product) * fall;
    };
    auto share = [&](int64_t s) {
      if constexpr (kKeep) return expf(kept[s] - best);
      return expf(fmaf(noise[s * noise_step], per_tau, correlation(s, pair) * to_logit) - best);
    };
    float changes[kKeep ? W : 1];
    float total = 0.0f, mean = 0.0f;
#pragma unroll(kKeep ? W : 2)
    for (int64_t s = 0; s < columns; ++s) {
      const float of_s = share(s), changed = change(s);
      total += of_s;
      mean = fmaf(of_s, changed, mean);
      if constexpr (kKeep) kept[s] = of_s, changes[s] = changed;
    }
    const float per_total = 1.0f / total;
    mean *= per_total;
    float scale_slope = 0.0f;
#pragma unroll(kKeep ? W : 2)
    for (int64_t s = 0; s < columns; ++s) {
      float of_s, changed;
      if constexpr (kKeep)
        of_s = kept[s], changed = changes[s];
      else
        of_s = share(s), changed = change(s);
      const float value = of_s * per_total * (changed - mean);
      scale_slope = fmaf(value, correlation(s, pair), scale_slope);
      slope[s * references] = value;
    }
    p.scale_slope[b * references + r] = scale_slope * unit * per_tau;
  }
}

// The products of a tile of pairs, to be found at products[number][query][strip]. All warps.
template <int W, int kGroups>
__device__ __forceinline__ void make_products(const MatchArguments& it, int64_t tile, float* products) {
  constexpr bool kSpectral = W > 0;
  constexpr int kParts = kSpectral ? 2 : 1, kDepth = kGroups == 2 ? 8 : 4;
  constexpr int kStrips = 16 * kGroups, kPairs = kTile * kStrips;
  const int slots = kSpectral ? W / 2 : static_cast<int>(it.p.strips.columns);
  const int warp = static_cast<int>(threadIdx.x / 32), warps = static_cast<int>(blockDim.x / 32);
  float* stages = dynamic_shared<float>() + warp * stage_floats(kParts, kGroups, kDepth);
  const int64_t query_tile = tile / it.blocks_of_strips, first_strip = tile % it.blocks_of_strips * kStrips;
  const float* left_tile = it.space.query_tiles + query_tile * it.query_tile;
  const float* right_tile = it.space.strip_tiles + first_strip / kTile * it.strip_tile + first_strip % kTile;
  for (int slot = warp; slot < slots; slot += warps) {
    const int64_t first = static_cast<int64_t>(slot) * it.padded * kParts * kTile;
    for (int term = 0; term < it.terms; term += kTermBlock) {
      const int count = it.terms - term < kTermBlock ? it.terms - term : kTermBlock;
      const float* left = left_tile + (kSpectral ? first : 0) + term * (kParts * kTile);
      const float* right = right_tile + first + term * (kParts * kTile);
      Sums<kParts, kGroups> sums;
      sums.clear();
      if constexpr (!kSpectral)
        accumulate<Product::kReal, kParts, kGroups, kDepth>(left, right, count, stages, sums);
      else if (slot == 0)
        accumulate<Product::kPairwise, kParts, kGroups, kDepth>(left, right, count, stages, sums);
      else
        accumulate<Product::kConjugate, kParts, kGroups, kDepth>(left, right, count, stages, sums);
      if (it.overlay) sync_block();  // every warp has one slot and one block of terms then
      put_sums(sums, products + slot * (kParts * kPairs), kPairs, kStrips, term > 0);
    }
  }
}

// Products lie in shared memory from float `shared_products` on, or in the work space if that is negative (W = 0 only,
// where a block takes tile after tile).
template <int W, bool kSlope>
__global__ void __launch_bounds__(kMaxWarps * 32, 2)
    azimuth_match_kernel(const MatchArguments it, const int64_t shared_products) {
  constexpr int kGroups = W == 0 || W > 16 ? 1 : 2, kStrips = 16 * kGroups, kPairs = kTile * kStrips;
  for (int64_t tile = blockIdx.x; tile < it.tiles; tile += gridDim.x) {
    float* products = W > 0 || shared_products >= 0 ? dynamic_shared<float>() + shared_products
                                                    : it.space.products + blockIdx.x * kPairs * it.p.strips.columns;
    make_products<W, kGroups>(it, tile, products);
    sync_block();
    const int64_t first_query = tile / it.blocks_of_strips * kTile, first_strip = tile % it.blocks_of_strips * kStrips;
    for (int pair = static_cast<int>(threadIdx.x); pair < kPairs; pair += static_cast<int>(blockDim.x))
      match_pair<W, kSlope, kPairs, kStrips>(it, first_query, first_strip, pair, products);
    if constexpr (W > 0) break;  // one tile a block
    sync_block();
  }
}

}  // namespace geoloc_fast::cuda
