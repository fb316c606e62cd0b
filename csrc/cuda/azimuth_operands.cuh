// What azimuth_match multiplies, made from strips and queries: spectra, columns, inner products of columns.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cuda/fourier.cuh"
#include "cuda/strip_items.cuh"

namespace geoloc_fast::cuda {

// The spectra of all items as operands. kByItem: lanes are items, [items/32][N/2][K'][2][32], for correlations; else
// lanes are values, [K/32][N/2][items'][2][32], for gradients. One warp a row of lanes; K', items' are `terms`.
template <int N, bool kByItem>
__global__ void __launch_bounds__(kItemThreads, N == 64 ? 3 : 4)
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
