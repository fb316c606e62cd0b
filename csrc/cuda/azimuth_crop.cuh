// Device bodies of azimuth_crop, forward and backward. Formula: geoloc_fast/azimuth_crop.h.
// SPDX-License-Identifier: Apache-2.0
//
// A block a pair, which lies packed in its shared memory, [K][W] and [K][Wq] (read where it is if it is too large).
// A warp takes a shift: lanes run along the window, column by column within a value, so that neighbours read
// neighbours. All that decides is summed in float64: there is so little of it (W w K multiply-adds a pair, 16.4 k at
// most for W = 16: 260 cycles of an SM's float64 units) that telling near ties apart would cost more. What moves is
// 4 (W + 2 w) K bytes a pair forward, 4 (3 W + 4 w) K backward: 12 KB and 28 KB, 3 us and 7 us for 1024 pairs of
// W = Wq = 16, K = 64 at 4.3 TB/s. A launch of three kernels takes about as long.
#pragma once
#include "cuda/azimuth_crop_heuristics.h"
#include "cuda/strip_items.cuh"
#include "geoloc_fast/azimuth_crop.h"

namespace geoloc_fast::cuda {

// The pair of a block, packed.
template <bool kShared>
struct CropPair {
  PackedItem query_item, strip_item;
  const float *query, *strip;  // in shared memory
  int64_t values;
  int columns, query_columns, width;
  double* correlation;  // [W] in shared memory, like the others
  double* energy;       // [W] of the windows
  double* value;        // [W] what is compared; logits for "gumbel"
  double* slope;        // [W]

  __device__ CropPair(const StripTensor& q, const StripTensor& s, const int64_t* widths, const CropSpace& space)
      : query_item(q, widths, space.query, blockIdx.x),
        strip_item(s, nullptr, space.strips, blockIdx.x),
        values(q.channels * q.height),
        columns(static_cast<int>(s.columns)),
        query_columns(static_cast<int>(q.columns)),
        width(static_cast<int>(query_item.width)) {
    correlation = dynamic_shared<double>();
    energy = correlation + columns;
    value = energy + columns;
    slope = value + columns;
    if constexpr (kShared) {
      float* to_strip = reinterpret_cast<float*>(slope + columns);
      float* to_query = to_strip + values * columns;
      strip = to_strip, query = to_query;
      fill(to_strip, strip_item, columns);
      fill(to_query, query_item, query_columns);
      sync_block();
    }
  }
  __device__ void fill(float* to, const PackedItem& from, int row) const {
    for (int64_t n = threadIdx.x; n < values * row; n += kCropThreads) {
      const int64_t k = n / row;
      to[n] = from(value_offset(from.t, from.item, k), n - k * row);
    }
  }
  __device__ float query_at(int64_t k, int x) const {
    if constexpr (kShared) return query[k * query_columns + x];
    return query_item(value_offset(query_item.t, query_item.item, k), x);
  }
  // Column x < 2 W of the strip laid end to end.
  __device__ float strip_at(int64_t k, int x) const {
    const int column = x < columns ? x : x - columns;
    if constexpr (kShared) return strip[k * columns + column];
    return strip_item(value_offset(strip_item.t, strip_item.item, k), column);
  }
  // Sum over the window at s of term(left(k, x), strip), by a warp; there on every lane.
  template <typename Left, typename Term>
  __device__ void over_window(int s, const Left& left, const Term& term) const {
    if (width == 0) return;
    const int step = 32 / width, rest = 32 % width, lane = lane_id();
    int64_t k = lane / width;
    int x = lane % width;
    while (k < values) {
      term(left(k, x), strip_at(k, s + x));
      k += step, x += rest;
      if (x >= width) x -= width, ++k;
    }
  }
  // out[s] = <left, window at s>, and the windows' energies if wanted. All threads.
  template <typename Left>
  __device__ void correlate(const Left& left, double* out, double* energies) const {
    for (int s = static_cast<int>(threadIdx.x / 32); s < columns; s += kCropThreads / 32) {
      double sum = 0, squares = 0;
      over_window(s, left, [&](float a, float b) {
        sum += static_cast<double>(a) * static_cast<double>(b);
        squares += static_cast<double>(b) * static_cast<double>(b);
      });
      sum = warp_sum(sum);
      squares = warp_sum(squares);
      if (lane_id() == 0) {
        out[s] = sum;
        if (energies != nullptr) energies[s] = squares;
      }
    }
    sync_block();
  }
};

struct CropShared {
  double total, mean, best;
  double parts[kCropThreads / 32];
  int32_t shift, broken;
};

// The sum of the parts of all warps, in one order, on every thread. `share` is what a thread brings.
__device__ __forceinline__ double block_sum(CropShared& all, double share) {
  share = warp_sum(share);
  sync_block();
  if (lane_id() == 0) all.parts[threadIdx.x / 32] = share;
  sync_block();
  double sum = 0;
  for (int warp = 0; warp < kCropThreads / 32; ++warp) sum += all.parts[warp];
  return sum;
}

template <bool kShared>
__global__ void __launch_bounds__(kCropThreads, 2)
    azimuth_crop_kernel(const AzimuthCropParams p, const CropSpace space) {
  CropShared& all = shared<CropShared>();
  const CropPair<kShared> pair(p.query, p.strips, p.query_width, space);
  const int64_t b = blockIdx.x;
  const int columns = pair.columns;
  const double* before = space.strips.column_sum + b * (columns + 1);
  pair.correlate([&](int64_t k, int x) { return pair.query_at(k, x); }, pair.correlation, pair.energy);
  const double query_length = static_cast<double>(space.query.norm[b]), total = before[columns];
  auto usable = [&](int s) { return window_energy(before, columns, s, pair.width) > kMinEnergyShare * total; };
  if (threadIdx.x == 0) {
    const double unit = static_cast<double>(space.query.unit[b]) * static_cast<double>(space.strips.unit[b]);
    const bool gumbel = p.select == Selection::kGumbel;
    const double scale = gumbel ? *p.device_scale : 1.0;
    bool broken = space.query.broken[b] != 0 || space.strips.broken[b] != 0;
    double best = -INFINITY;
    int shift = 0;
    for (int s = 0; s < columns; ++s) {
      double value = pair.correlation[s];
      if (p.select == Selection::kCosine) value = query_length > 0 && usable(s) ? value / sqrt(pair.energy[s]) : 0.0;
      if (gumbel) {
        value = (scale * (value * unit) + static_cast<double>(p.noise[b * p.noise_stride[0] + s * p.noise_stride[1]])) /
                p.tau;
        broken = broken || value != value;
      }
      if (value > best) best = value, shift = s;
    }
    // A softmax with NaN or +Inf in it, or of nothing but -Inf.
    if (gumbel) broken = broken || !(fabsf(static_cast<float>(best)) < INFINITY);
    all.shift = broken ? 0 : shift;
    all.broken = broken;
  }
  sync_block();
  const int shift = all.shift;
  const bool broken = all.broken != 0, there = usable(shift);
  const double energy = pair.energy[shift];
  const float per_norm = broken ? NAN : there ? static_cast<float>(1.0 / sqrt(energy)) : 0.0f;
  float* crop = p.crop + b * pair.values * pair.query_columns;
  for (int64_t n = threadIdx.x; n < pair.values * pair.query_columns; n += kCropThreads) {
    const int64_t k = n / pair.query_columns;
    const int x = static_cast<int>(n - k * pair.query_columns);
    crop[n] = broken ? NAN : x < pair.width ? pair.strip_at(k, shift + x) * per_norm : 0.0f;
  }
  if (threadIdx.x != 0) return;
  const double score = there && query_length > 0 ? pair.correlation[shift] / (query_length * sqrt(energy)) : 0.0;
  p.score[b] = broken ? NAN : fminf(fmaxf(static_cast<float>(score), -1.0f), 1.0f);
  p.shift[b] = shift;
}

template <bool kShared>
__global__ void __launch_bounds__(kCropThreads, 2)
    azimuth_crop_backward_kernel(const AzimuthCropBackwardParams p, const CropSpace space) {
  CropShared& all = shared<CropShared>();
  const CropPair<kShared> pair(p.query, p.strips, p.query_width, space);
  const int64_t b = blockIdx.x, values = pair.values;
  const int columns = pair.columns, query_columns = pair.query_columns, width = pair.width;
  const int thread = static_cast<int>(threadIdx.x);
  const bool gumbel = p.select == Selection::kGumbel;
  const double* before = space.strips.column_sum + b * (columns + 1);
  float* grad_query = p.grad_query + b * values * query_columns;
  float* grad_strip = p.grad_strips + b * values * columns;
  const float* grad_crop = p.grad_crop + b * values * query_columns;
  const float score = p.score[b];
  const int shift = static_cast<int>(p.shift[b]);
  const float per_norm = window_norm(before, columns, shift, width);
  if (!(score == score) || !(per_norm > 0.0f)) {
    for (int64_t n = thread; n < values * query_columns; n += kCropThreads) grad_query[n] = 0.0f;
    for (int64_t n = thread; n < values * columns; n += kCropThreads) grad_strip[n] = 0.0f;
    if (gumbel && thread == 0) p.grad_scale[b] = 0.0;
    return;
  }
  const float query_length = space.query.norm[b], per_query = query_length > 0 ? 1.0f / query_length : 0.0f;
  const float g = per_query > 0 ? p.grad_score[b] : 0.0f;
  double along = 0;  // <crop, G>
  for (int64_t n = thread; n < values * query_columns; n += kCropThreads) {
    const int64_t k = n / query_columns;
    const int x = static_cast<int>(n - k * query_columns);
    if (x < width) along += static_cast<double>(grad_crop[n]) * static_cast<double>(pair.strip_at(k, shift + x));
  }
  const float of_crop = static_cast<float>(block_sum(all, along)) * per_norm;
  const float norm_share = (of_crop * per_norm + g * score * per_norm) * per_norm;
  const float per_both = g * per_query * per_norm, query_share = g * score * per_query * per_query;
  // d loss / d window, at x < width.
  auto change = [&](int64_t k, int x) {
    return grad_crop[k * query_columns + x] * per_norm + pair.query_at(k, x) * per_both -
           pair.strip_at(k, shift + x) * norm_share;
  };

  float soft = 0.0f;  // slopes become weights of packed windows
  if (gumbel) {
    const double unit = static_cast<double>(space.query.unit[b]) * static_cast<double>(space.strips.unit[b]);
    const double scale = *p.device_scale;
    pair.correlate([&](int64_t k, int x) { return pair.query_at(k, x); }, pair.correlation, nullptr);
    pair.correlate(change, pair.slope, nullptr);
    for (int s = thread; s < columns; s += kCropThreads)
      pair.value[s] = (scale * (pair.correlation[s] * unit) +
                       static_cast<double>(p.noise[b * p.noise_stride[0] + s * p.noise_stride[1]])) /
                      p.tau;
    sync_block();
    if (thread == 0) {
      all.best = pair.value[0];
      for (int s = 1; s < columns; ++s)
        if (pair.value[s] > all.best) all.best = pair.value[s];
    }
    sync_block();
    double total = 0, mean = 0;
    for (int s = thread; s < columns; s += kCropThreads) {
      const double share = exp(pair.value[s] - all.best);
      pair.value[s] = share;
      total += share;
      mean += share * pair.slope[s];
    }
    total = block_sum(all, total);
    mean = block_sum(all, mean) / total;
    double of_scale = 0;
    for (int s = thread; s < columns; s += kCropThreads) {
      const double slope = pair.value[s] / total * (pair.slope[s] - mean);
      of_scale += slope * pair.correlation[s];
      pair.slope[s] = slope;
    }
    of_scale = block_sum(all, of_scale);
    if (thread == 0) p.grad_scale[b] = of_scale * unit / p.tau;
    soft = static_cast<float>(scale / p.tau * unit);
  }
  for (int64_t n = thread; n < values * query_columns; n += kCropThreads) {
    const int64_t k = n / query_columns;
    const int x = static_cast<int>(n - k * query_columns);
    float sum = 0.0f;
    if (gumbel && x < width)
      for (int s = 0; s < columns; ++s) sum = fmaf(static_cast<float>(pair.slope[s]), pair.strip_at(k, s + x), sum);
    grad_query[n] = x < width
                        ? (sum * soft + pair.strip_at(k, shift + x) * per_both - pair.query_at(k, x) * query_share) *
                              space.query.inverse[b]
                        : 0.0f;
  }
  for (int64_t n = thread; n < values * columns; n += kCropThreads) {
    const int64_t k = n / columns;
    const int j = static_cast<int>(n - k * columns), in_window = j >= shift ? j - shift : j - shift + columns;
    float sum = 0.0f;
    if (gumbel)
      for (int x = 0; x < width; ++x)
        sum = fmaf(static_cast<float>(pair.slope[j >= x ? j - x : j - x + columns]), pair.query_at(k, x), sum);
    grad_strip[n] = (sum * soft + (in_window < width ? change(k, in_window) : 0.0f)) * space.strips.inverse[b];
  }
}

}  // namespace geoloc_fast::cuda
