// Device bodies of azimuth_match, backward. Formula: geoloc_fast/azimuth_match.h; costs: azimuth_match_heuristics.h.
// SPDX-License-Identifier: Apache-2.0
//
//   weigh    a block a query: what each pair's gradient weighs, and the sums over strips that need nothing else
//   shares   what the norms of the chosen windows take off every column of a strip
//   then for queries and again for strips, in the spectral plan
//     weights   the weights of all shifts of a pair, transformed, as an operand
//     sums      products per frequency (azimuth_product.cuh), rows x values, over the other side in pieces
//     finish    the pieces in order, transformed back, less the norm's share
//   and in the other one
//     scatter   a thread a number of a gradient: the windows that touch it, one by one
//
// Every sum has one order, whatever the device: no atomics.
#pragma once
#include "cuda/azimuth_operands.cuh"
#include "cuda/azimuth_product.cuh"

namespace geoloc_fast::cuda {

constexpr int kGradientThreads = 256;

struct GradientArguments {
  AzimuthMatchBackwardParams p;
  GradientSpace space;
  int64_t splits, queries_per_split;  // of the shares
};

struct WeighShared {
  double score[kGradientThreads / 32], scale[kGradientThreads / 32];
};

__global__ void __launch_bounds__(kGradientThreads) azimuth_weigh_kernel(const GradientArguments it) {
  const AzimuthMatchBackwardParams& p = it.p;
  const int64_t b = blockIdx.x, references = p.strips.items, columns = p.strips.columns;
  const int64_t width = width_of(p.query_width, b, p.query.columns);
  const int thread = static_cast<int>(threadIdx.x);
  const float query_length = it.space.query.norm[b], query_norm = query_length > 0 ? 1.0f / query_length : 0.0f;
  const bool gumbel = p.slope != nullptr;
  const float to_logit =
      gumbel ? static_cast<float>(*p.device_scale / p.tau * static_cast<double>(it.space.query.unit[b])) : 0.0f;
  double score_sum = 0, scale_sum = 0;
  for (int64_t r = thread; r < references; r += kGradientThreads) {
    const int64_t at = b * references + r;
    const float score = p.score[at], g = p.grad_score[at];
    float hard = 0.0f, soft = 0.0f, taken = 0.0f;
    if (score == score) {  // else broken: no gradient
      const float norm = window_norm(it.space.strips.column_sum + r * (columns + 1), columns, p.shift[at], width);
      hard = g * query_norm * norm;
      taken = g * score * norm * norm;
      score_sum += static_cast<double>(g * score);
      if (gumbel) {
        soft = g * it.space.strips.unit[r] * to_logit;
        scale_sum += static_cast<double>(g * p.scale_slope[at]);
      }
    }
    it.space.hard[at] = hard;
    it.space.taken[at] = taken;
    if (gumbel) it.space.soft[at] = soft;
  }
  WeighShared& sums = shared<WeighShared>();
  score_sum = warp_sum(score_sum);
  scale_sum = warp_sum(scale_sum);
  if (lane_id() == 0) sums.score[thread / 32] = score_sum, sums.scale[thread / 32] = scale_sum;
  sync_block();
  if (thread != 0) return;
  for (int warp = 1; warp < kGradientThreads / 32; ++warp) score_sum += sums.score[warp], scale_sum += sums.scale[warp];
  it.space.query_sum[b] = score_sum;
  it.space.scale_sum[b] = scale_sum;
}

// One warp.
__global__ void __launch_bounds__(32) azimuth_scale_kernel(const double* scale_sum, int64_t batch, double* grad_scale) {
  double sum = 0;
  for (int64_t b = lane_id(); b < batch; b += 32) sum += scale_sum[b];
  sum = warp_sum(sum);
  if (lane_id() == 0) *grad_scale = sum;
}

constexpr int kShareColumns = 8;  // columns of a strip in a thread's registers

// shares[split][r][x] = sum over the split's queries of taken [x in the chosen window]. Lanes are strips.
__global__ void __launch_bounds__(kGradientThreads) azimuth_shares_kernel(const GradientArguments it) {
  const AzimuthMatchBackwardParams& p = it.p;
  const int64_t references = p.strips.items, columns = p.strips.columns;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kTile + lane_id();
  if (r >= references) return;
  const int64_t begin = blockIdx.y * it.queries_per_split, end = min_of(begin + it.queries_per_split, p.query.items);
  float* out = it.space.shares + (blockIdx.y * references + r) * columns;
  for (int64_t first = threadIdx.x / 32 * kShareColumns; first < columns;
       first += kGradientThreads / 32 * kShareColumns) {
    float sum[kShareColumns];
#pragma unroll
    for (int x = 0; x < kShareColumns; ++x) sum[x] = 0.0f;
    for (int64_t b = begin; b < end; ++b) {
      const float taken = it.space.taken[b * references + r];
      const int shift = static_cast<int>(p.shift[b * references + r]);
      const int width = static_cast<int>(width_of(p.query_width, b, p.query.columns));
      const int away = static_cast<int>(first) - shift;
#pragma unroll
      for (int x = 0; x < kShareColumns; ++x) {
        const int in_window = away + x < 0 ? away + x + static_cast<int>(columns) : away + x;
        if (in_window < width) sum[x] += taken;
      }
    }
#pragma unroll
    for (int x = 0; x < kShareColumns; ++x)
      if (first + x < columns) out[first + x] = sum[x];
  }
}

// The transformed weights as an operand, [rows/32][N/2][terms][2][32]: rows are queries and terms strips, or the other
// way round. A thread a pair; where rows are queries a warp takes 4 of them and 8 strips, so that slopes are read 32
// bytes at a time.
template <int N, bool kOfQuery>
__global__ void __launch_bounds__(kGradientThreads)
    azimuth_weights_kernel(const GradientArguments it, int64_t terms, int64_t term_tiles) {
  const AzimuthMatchBackwardParams& p = it.p;
  const int64_t batch = p.query.items, references = p.strips.items;
  const int64_t tile = blockIdx.x / term_tiles, term_tile = blockIdx.x % term_tiles;
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x / 32);
  const int row = kOfQuery ? warp * 4 + lane / 8 : lane, term_of_tile = kOfQuery ? lane % 8 : warp;
  const int64_t term = term_tile * kTermAlign + term_of_tile;
  const int64_t b = kOfQuery ? tile * kTile + row : term, r = kOfQuery ? term : tile * kTile + row;
  float values[N];
#pragma unroll
  for (int s = 0; s < N; ++s) values[s] = 0.0f;
  if (b < batch && r < references) {
    const int64_t at = b * references + r;
    const float hard = it.space.hard[at];
    const int64_t shift = p.shift[at];
    if (p.slope != nullptr) {
      const float soft = it.space.soft[at];
      const float* slope = p.slope + b * N * references + r;
#pragma unroll
      for (int s = 0; s < N; ++s) values[s] = soft * slope[s * references] + (s == shift ? hard : 0.0f);
    } else {
#pragma unroll
      for (int s = 0; s < N; ++s) values[s] = s == shift ? hard : 0.0f;
    }
  }
  forward_transform(values);
  float* out = it.space.weights + (tile * (N / 2) * terms + term) * 2 * kTile + row;
#pragma unroll
  for (int f = 0; f < N / 2; ++f) {
    out[f * terms * 2 * kTile] = values[2 * f];
    out[f * terms * 2 * kTile + kTile] = values[2 * f + 1];
  }
}

struct SumArguments {
  const float *weights, *others;  // [rows/32][slots][terms][2][32] and [K/32][slots][terms][2][32]
  float* sums;                    // [splits][2 slots][rows'][K']
  int64_t slots, row_tiles, value_tiles, terms, splits, terms_per_split;
};

constexpr int kSumWarps = 4;

// A warp a product of 32 rows and 32 values at one frequency, over one piece of the terms.
template <bool kOfQuery>
__global__ void __launch_bounds__(kSumWarps * 32, 4) azimuth_sums_kernel(const SumArguments it) {
  constexpr int kDepth = 8;
  float* stages = dynamic_shared<float>() + threadIdx.x / 32 * stage_floats(2, 2, kDepth);
  int64_t unit = static_cast<int64_t>(blockIdx.x) * kSumWarps + threadIdx.x / 32;
  if (unit >= it.slots * it.row_tiles * it.value_tiles * it.splits) return;
  // Neighbours share their weights, the larger operand.
  const int64_t value_tile = unit % it.value_tiles;
  unit /= it.value_tiles;
  const int64_t slot = unit % it.slots;
  unit /= it.slots;
  const int64_t row_tile = unit % it.row_tiles, split = unit / it.row_tiles;
  const int64_t first = split * it.terms_per_split;
  const int terms = static_cast<int>(min_of(it.terms_per_split, it.terms - first));
  const float* left = it.weights + ((row_tile * it.slots + slot) * it.terms + first) * 2 * kTile;
  const float* right = it.others + ((value_tile * it.slots + slot) * it.terms + first) * 2 * kTile;
  Sums<2, 2> sums;
  sums.clear();
  if (slot == 0)
    accumulate<Product::kPairwise, 2, 2, kDepth>(left, right, terms, stages, sums);
  else if constexpr (kOfQuery)
    accumulate<Product::kConjugate, 2, 2, kDepth>(left, right, terms, stages, sums);
  else
    accumulate<Product::kComplex, 2, 2, kDepth>(left, right, terms, stages, sums);
  const int64_t rows = it.row_tiles * kTile, values = it.value_tiles * kTile;
  float* out = it.sums + ((split * 2 * it.slots + 2 * slot) * rows + row_tile * kTile) * values + value_tile * kTile;
  put_sums(sums, out, rows * values, values, false);
}

// The share of the norms: of a query in all its values, of a strip in a column's.
template <bool kOfQuery>
struct NormShare {
  const GradientArguments& it;
  int64_t item;
  float of_query;

  __device__ NormShare(const GradientArguments& arguments, int64_t i) : it(arguments), item(i), of_query(0.0f) {
    if constexpr (kOfQuery) {
      const float length = it.space.query.norm[i], norm = length > 0 ? 1.0f / length : 0.0f;
      of_query = static_cast<float>(it.space.query_sum[i]) * norm * norm;
    }
  }
  __device__ float operator()(int64_t x) const {
    if constexpr (kOfQuery) return of_query;
    const int64_t columns = it.p.strips.columns;
    const float* shares = it.space.shares + item * columns + x;
    float sum = 0.0f;
    for (int64_t split = 0; split < it.splits; ++split) sum += shares[split * it.p.strips.items * columns];
    return sum;
  }
};

// A thread a value of an item: all its columns.
template <int N, bool kOfQuery>
__global__ void __launch_bounds__(kGradientThreads)
    azimuth_finish_kernel(const GradientArguments it, const GradientLaunch launch) {
  const AzimuthMatchBackwardParams& p = it.p;
  const StripTensor& t = kOfQuery ? p.query : p.strips;
  const int64_t values = t.channels * t.height, padded = launch.value_tiles * kTile;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kGradientThreads + threadIdx.x, item = n / padded;
  const int64_t k = n - item * padded, rows = launch.row_tiles * kTile;
  if (item >= t.items || k >= values) return;
  float sums[N];
#pragma unroll
  for (int f = 0; f < N; ++f) sums[f] = 0.0f;
  for (int64_t split = 0; split < launch.splits; ++split) {
    const float* from = it.space.sums + (split * N * rows + item) * padded + k;
#pragma unroll
    for (int f = 0; f < N; ++f) sums[f] += from[f * rows * padded];
  }
  inverse_transform(sums);
  const ItemFacts& facts = kOfQuery ? it.space.query : it.space.strips;
  const PackedItem packed(t, kOfQuery ? p.query_width : nullptr, facts, item);
  const NormShare<kOfQuery> share(it, item);
  const int64_t offset = value_offset(t, item, k);
  float* out = (kOfQuery ? p.grad_query : p.grad_strips) + (item * values + k) * t.columns;
#pragma unroll
  for (int x = 0; x < N; ++x)
    if (x < t.columns)
      out[x] = x < packed.width ? (sums[x] * (1.0f / N) - packed(offset, x) * share(x)) * facts.inverse[item] : 0.0f;
}

constexpr int kScatterThreads = 128;

// Of `at_once` items of the other side: width, chosen shift, and weights over the item's unit, [at_once][W] for
// "gumbel" and the chosen shift's alone for the other selections; 0 for a broken pair.
struct ScatterItems {
  int32_t *width, *shift;
  float* weight;

  __device__ explicit ScatterItems(int64_t at_once)
      : width(dynamic_shared<int32_t>()), shift(width + at_once), weight(reinterpret_cast<float*>(shift + at_once)) {}
};

// The other plan: any W, any selection. A thread a number of a gradient.
template <bool kOfQuery>
__global__ void __launch_bounds__(kScatterThreads, 4)
    azimuth_scatter_kernel(const GradientArguments it, int64_t at_once, int64_t pieces) {
  const AzimuthMatchBackwardParams& p = it.p;
  const StripTensor &t = kOfQuery ? p.query : p.strips, &other = kOfQuery ? p.strips : p.query;
  const ItemFacts &facts = kOfQuery ? it.space.query : it.space.strips,
                  &other_facts = kOfQuery ? it.space.strips : it.space.query;
  const int64_t item = blockIdx.x / pieces, values = t.channels * t.height, references = p.strips.items;
  const int64_t n = blockIdx.x % pieces * kScatterThreads + threadIdx.x, k = n / t.columns;
  const int x = static_cast<int>(n - k * t.columns), columns = static_cast<int>(p.strips.columns);
  const bool there = k < values, gumbel = p.slope != nullptr;
  const int shifts = gumbel ? columns : 1;
  const ScatterItems items(at_once);
  const PackedItem packed(t, kOfQuery ? p.query_width : nullptr, facts, item);
  const int64_t offset = value_offset(other, 0, k);
  float sum = 0.0f;
  for (int64_t first = 0; first < other.items; first += at_once) {
    const int count = static_cast<int>(min_of(at_once, other.items - first));
    sync_block();
    for (int i = static_cast<int>(threadIdx.x); i < count * shifts; i += kScatterThreads) {
      const int64_t o = first + i / shifts, b = kOfQuery ? item : o, r = kOfQuery ? o : item, at = b * references + r;
      const int s = i % shifts, shift = static_cast<int>(p.shift[at]);
      float weight = !gumbel || s == shift ? it.space.hard[at] : 0.0f;
      if (gumbel) weight += it.space.soft[at] * p.slope[(b * columns + s) * references + r];
      items.weight[i] = other_facts.broken[o] == 0 ? weight * other_facts.inverse[o] : 0.0f;
      if (s != 0) continue;
      items.shift[i / shifts] = shift;
      items.width[i / shifts] = kOfQuery ? columns : static_cast<int>(width_of(p.query_width, o, p.query.columns));
    }
    sync_block();
    if (!there || x >= packed.width) continue;
    float part = 0.0f;
    for (int i = 0; i < count; ++i) {
      const int64_t begin = offset + (first + i) * other.stride[0];
      const int only = items.shift[i], width = items.width[i];
      for (int n_shift = 0; n_shift < shifts; ++n_shift) {
        const int s = gumbel ? n_shift : only;
        const float weight = items.weight[i * shifts + n_shift];
        // Column x of a query lies over column s + x of the strip.
        const int at = kOfQuery ? (s + x < columns ? s + x : s + x - columns) : x >= s ? x - s : x - s + columns;
        if (at < width && weight != 0.0f) part = fmaf(weight, value_at(other, begin + at * other.stride[3]), part);
      }
    }
    sum += part;
  }
  if (!there) return;
  const NormShare<kOfQuery> share(it, item);
  float* out = (kOfQuery ? p.grad_query : p.grad_strips) + (item * values + k) * t.columns + x;
  *out = x < packed.width ? (sum - packed(value_offset(t, item, k), x) * share(x)) * facts.inverse[item] : 0.0f;
}

}  // namespace geoloc_fast::cuda
