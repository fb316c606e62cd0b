// How azimuth kernels take strips in: any strides and dtype, scaled by a power of two, transformed along azimuth.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "cuda/azimuth_match_heuristics.h"
#include "cuda/device.h"
#include "cuda/fourier.cuh"

namespace geoloc_fast::cuda {

constexpr double kMinEnergyShare = 1e-6;  // a window with less of its strip's energy is noise: it scores 0
constexpr int kItemThreads = 128;

__device__ __forceinline__ int64_t value_offset(const StripTensor& t, int64_t item, int64_t k) {
  const int64_t c = k / t.height, h = k - c * t.height;
  return item * t.stride[0] + c * t.stride[1] + h * t.stride[2];
}
__device__ __forceinline__ float value_at(const StripTensor& t, int64_t offset) {
  switch (t.dtype) {
    case DType::kFloat16: return to_float(static_cast<const half_t*>(t.data)[offset]);
    case DType::kBFloat16: return to_float(static_cast<const bf16_t*>(t.data)[offset]);
    default: return static_cast<const float*>(t.data)[offset];
  }
}

__device__ __forceinline__ int64_t width_of(const int64_t* widths, int64_t item, int64_t columns) {
  if (widths == nullptr) return columns;
  const int64_t width = widths[item];
  return width < 0 ? 0 : width < columns ? width : columns;
}

__device__ __forceinline__ bool is_broken(float value) {
  return (__float_as_uint(value) & 0x7f800000u) == 0x7f800000u;  // NaN or Inf
}

// Sums over a warp, in one order, there on every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  return value;
}

// Energy of the window of `width` columns at s, from the sums over the columns before (columns + 1 of them). Exactly 0
// for a window of zeros.
__device__ __forceinline__ double window_energy(const double* before, int64_t columns, int64_t s, int64_t width) {
  const int64_t end = s + width;
  return end <= columns ? before[end] - before[s] : before[columns] - before[s] + before[end - columns];
}
// 1 / |window|, and 0 for a window that is noise.
__device__ __forceinline__ float window_norm(const double* before, int64_t columns, int64_t s, int64_t width) {
  const double energy = window_energy(before, columns, s, width);
  return energy > kMinEnergyShare * before[columns] ? 1.0f / sqrtf(static_cast<float>(energy)) : 0.0f;
}

struct ItemShared {
  uint32_t largest[kItemThreads / 32];
  double energy[kItemThreads / 32];
};

// One block an item, and for the items up to the next multiple of kTile.
__global__ void __launch_bounds__(kItemThreads)
    azimuth_facts_kernel(const StripTensor t, const int64_t* widths, const ItemFacts facts) {
  ItemShared& mine = shared<ItemShared>();
  const int64_t item = blockIdx.x, values = t.channels * t.height;
  const int thread = static_cast<int>(threadIdx.x), lane = lane_id(), warp = thread / 32, warps = kItemThreads / 32;
  if (item >= t.items) {
    if (thread == 0) {
      facts.inverse[item] = facts.unit[item] = 1.0f;
      facts.norm[item] = 0.0f;
      facts.broken[item] = 0;
    }
    return;
  }
  const int64_t width = width_of(widths, item, t.columns);
  uint32_t largest = 0;
  for (int64_t n = thread; n < values * width; n += kItemThreads) {
    const int64_t k = n / width, x = n - k * width;
    const uint32_t bits = __float_as_uint(value_at(t, value_offset(t, item, k) + x * t.stride[3])) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint32_t other = shuffle_xor(largest, distance);
    largest = other > largest ? other : largest;
  }
  if (lane == 0) mine.largest[warp] = largest;
  sync_block();
  for (int w = 0; w < warps; ++w) largest = mine.largest[w] > largest ? mine.largest[w] : largest;
  const bool broken = largest >= 0x7f800000u;
  uint32_t exponent = broken || largest == 0 ? 127 : largest >> 23;  // biased by 127
  exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  const float inverse = __uint_as_float((254 - exponent) << 23);
  double energy = 0;
  for (int64_t x = warp; x < width; x += warps) {
    double column = 0;
    if (!broken)
      for (int64_t k = lane; k < values; k += 32) {
        const double value = static_cast<double>(value_at(t, value_offset(t, item, k) + x * t.stride[3]) * inverse);
        column += value * value;
      }
    column = warp_sum(column);
    energy += column;
    if (facts.column_sum != nullptr && lane == 0) facts.column_sum[item * (width + 1) + x + 1] = column;
  }
  if (lane == 0) mine.energy[warp] = energy;
  sync_block();
  if (thread != 0) return;
  energy = 0;
  if (facts.column_sum != nullptr) {
    double* before = facts.column_sum + item * (width + 1);
    before[0] = 0;
    for (int64_t x = 1; x <= width; ++x) before[x] = energy += before[x];
  } else {
    for (int w = 0; w < warps; ++w) energy += mine.energy[w];
  }
  facts.inverse[item] = inverse;
  facts.unit[item] = __uint_as_float(exponent << 23);
  facts.norm[item] = static_cast<float>(sqrt(energy));
  facts.broken[item] = broken ? 1 : 0;
}

// A packed value, 0 where there is none.
struct PackedItem {
  const StripTensor& t;
  int64_t item, width;
  float inverse;
  bool there;

  __device__ PackedItem(const StripTensor& tensor, const int64_t* widths, const ItemFacts& facts, int64_t i)
      : t(tensor),
        item(i),
        width(i < tensor.items ? width_of(widths, i, tensor.columns) : 0),
        inverse(i < tensor.items ? facts.inverse[i] : 0.0f),
        there(i < tensor.items && facts.broken[i] == 0) {}

  __device__ float operator()(int64_t offset, int64_t x) const {
    return there && x < width ? value_at(t, offset + x * t.stride[3]) * inverse : 0.0f;
  }
};

// The spectra of all items as operands. kByItem: lanes are items, [items/32][N/2][K'][2][32], for correlations; else
// lanes are values, [K/32][N/2][items'][2][32], for gradients. One warp a row of lanes; K', items' are `terms`.
template <int N, bool kByItem>
__global__ void __launch_bounds__(kItemThreads)
    azimuth_spectra_kernel(const StripTensor t, const int64_t* widths, const ItemFacts facts, int64_t terms,
                           int64_t rows, float* out) {
  const int64_t values = t.channels * t.height;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kItemThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int64_t tile = row / terms, term = row - tile * terms, in_lane = tile * kTile + lane_id();
  const int64_t item = kByItem ? in_lane : term, k = kByItem ? term : in_lane;
  const PackedItem packed(t, widths, facts, item);
  const int64_t offset = value_offset(t, item, k);
  float spectrum[N];
#pragma unroll
  for (int x = 0; x < N; ++x) spectrum[x] = k < values ? packed(offset, x) : 0.0f;
  forward_transform(spectrum);
  float* to = out + (tile * (N / 2) * terms + term) * 2 * kTile + lane_id();
#pragma unroll
  for (int f = 0; f < N / 2; ++f) {
    to[f * terms * 2 * kTile] = spectrum[2 * f];
    to[f * terms * 2 * kTile + kTile] = spectrum[2 * f + 1];
  }
}

// The columns of all items as operands, [items/32][count][K'][32]; column x is column x modulo the item's own.
__global__ void __launch_bounds__(kItemThreads)
    azimuth_columns_kernel(const StripTensor t, const int64_t* widths, const ItemFacts facts, int64_t count,
                           int64_t padded, int64_t rows, float* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kItemThreads / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  const int64_t k = row % padded, x = row / padded % count, item = row / (padded * count) * kTile + lane_id();
  const PackedItem packed(t, widths, facts, item);
  out[row * kTile + lane_id()] =
      k < t.channels * t.height ? packed(value_offset(t, item, k), x < t.columns ? x : x - t.columns) : 0.0f;
}

constexpr int kGramThreads = 256;
constexpr int kGramValues = 32;  // values in shared memory at once

// gram[a][d] = sum over a' < a of <column a', column a' + d>, packed, of one strip a block: an inner product of two
// windows is a difference of two of these. Products are fp32 sums of at most kGramValues, all else is float64.
__global__ void __launch_bounds__(kGramThreads)
    azimuth_gram_kernel(const StripTensor t, const ItemFacts facts, int64_t at_once, double* gram_of_all) {
  float* rows = dynamic_shared<float>();  // [at_once][W]
  const int64_t columns = t.columns, values = t.channels * t.height, item = blockIdx.x;
  const int64_t products = columns * columns;
  double* gram = gram_of_all + item * (columns + 1) * columns;
  const PackedItem packed(t, nullptr, facts, item);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t d = thread; d < columns; d += kGramThreads) gram[d] = 0;
  for (int64_t first = 0; first < values; first += at_once) {
    const int64_t count = min_of(at_once, values - first);
    sync_block();
    for (int64_t n = thread; n < count * columns; n += kGramThreads) {
      const int64_t k = n / columns;
      rows[n] = packed(value_offset(t, item, first + k), n - k * columns);
    }
    sync_block();
    for (int64_t n = thread; n < products; n += kGramThreads) {
      const int64_t d = n / columns, a = n - d * columns, b = a + d < columns ? a + d : a + d - columns;
      float sum = 0.0f;
      for (int64_t k = 0; k < count; ++k) sum += rows[k * columns + a] * rows[k * columns + b];
      double* to = gram + (a + 1) * columns + d;
      *to = first == 0 ? static_cast<double>(sum) : *to + static_cast<double>(sum);
    }
  }
  sync_block();
  for (int64_t d = thread; d < columns; d += kGramThreads) {
    double sum = 0;
    for (int64_t a = 1; a <= columns; ++a) {
      if (values > 0) sum += gram[a * columns + d];
      gram[a * columns + d] = sum;
    }
  }
}

}  // namespace geoloc_fast::cuda
