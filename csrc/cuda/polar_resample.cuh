// Device bodies of polar_resample and its backward. Formula and layout: geoloc_fast/polar_resample.h.
// SPDX-License-Identifier: Apache-2.0
//
// A block is 32 columns and some rows of one image. A thread keeps one column: its sine and cosine are computed once
// (the angle in float64, so that a large heading costs no accuracy) and serve all its rows. Neighbouring threads hold
// neighbouring azimuths, so writes are whole sectors and reads fall on a short arc; rows follow each other towards the
// centre, so that what one brings into the cache the next ones use.
#pragma once
#include "common/polar_geometry.h"
#include "cuda/device.h"
#include "cuda/polar_resample_heuristics.h"

namespace geoloc_fast::cuda {

// Where the work of one block lies in an image, and this thread in it.
struct PolarItem {
  int64_t row, row_end, column;
  float center_row, center_col, radius, sine, cosine;
};

__device__ __forceinline__ PolarItem polar_item(const PolarGeometry& p, const PolarPlan& plan, int64_t image) {
  const uint32_t tile_column = blockIdx.x % static_cast<uint32_t>(plan.column_tiles);
  const uint32_t tile_row = blockIdx.x / static_cast<uint32_t>(plan.column_tiles);
  PolarItem item;
  item.column = static_cast<int64_t>(tile_column) * kPolarColumns + threadIdx.x % kPolarColumns;
  const int64_t first = static_cast<int64_t>(tile_row) * plan.rows;
  item.row = first + threadIdx.x / kPolarColumns;
  item.row_end = first + plan.rows < p.out_rows ? first + plan.rows : p.out_rows;
  if (item.column >= p.out_cols) item.row_end = 0;
  const PolarView view = polar_view(p, image);
  item.center_row = static_cast<float>(view.center_row), item.center_col = static_cast<float>(view.center_col);
  item.radius = static_cast<float>(view.max_radius);
  const double half_turns =
      plan.column0 + view.heading_deg * (1.0 / 180.0) + plan.step * static_cast<double>(item.column);
  sincospif(static_cast<float>(half_turns - 2.0 * floor(half_turns * 0.5)), &item.sine, &item.cosine);
  return item;
}

// Single taps of any channel count and strides.
template <typename In, typename Out>
__device__ __forceinline__ void polar_pixel(const PolarResampleParams& p, const In* image, float row, float col,
                                            Out* out, int64_t plane) {
  const BilinearTaps taps =
      bilinear_taps(row, col, p.in_rows, p.in_cols, p.stride_row, p.stride_col, p.replicate_border);
  for (int64_t c = 0; c < p.channels; ++c) {
    const In* channel = image + c * p.stride_channel;
    float value = 0.0f;
#pragma unroll
    for (int tap = 0; tap < 4; ++tap)
      if (taps.weight[tap] != 0.0f) value += taps.weight[tap] * to_float(channel[taps.offset[tap]]);
    if (p.normalize) value = value * p.scale[c] + p.offset[c];
    set(out + c * plane, value);
  }
}

// Bytes [at, at + 2 kChannels) of an image, in two words. Whole aligned words are read, but none that is not wholly
// inside [0, end).
template <int kChannels>
__device__ __forceinline__ void load_neighbours(const uint8_t* image, int32_t at, int32_t end, uint32_t (&out)[2]) {
  const uint8_t* from = image + at;
  if constexpr (kChannels == 4) {
    out[0] = load_vector<uint32_t>(from);
    out[1] = load_vector<uint32_t>(from + 4);
  } else {
    const int32_t into = static_cast<int32_t>(reinterpret_cast<uintptr_t>(from) & 3u);
    if (at >= into && at - into + 12 <= end) {
      const uint8_t* word = from - into;
      const uint32_t first = load_vector<uint32_t>(word), second = load_vector<uint32_t>(word + 4);
      const uint32_t third = into == 3 ? load_vector<uint32_t>(word + 8) : 0u;
      const int shift = 8 * into;
      out[0] = shift ? first >> shift | second << (32 - shift) : first;
      out[1] = shift ? second >> shift | third << (32 - shift) : second;
    } else {
      out[0] = from[0] | static_cast<uint32_t>(from[1]) << 8 | static_cast<uint32_t>(from[2]) << 16 |
               static_cast<uint32_t>(from[3]) << 24;
      out[1] = from[4] | static_cast<uint32_t>(from[5]) << 8;
    }
  }
}

// What columns `first` and first + 1 weigh: each of the two taps counts for the column it falls on.
__device__ __forceinline__ void pair_weights(int32_t column, float part, int32_t columns, bool replicate,
                                             int32_t* first, float (&weight)[2]) {
  const int32_t last = columns - 2;
  *first = column < 0 ? 0 : column > last ? last : column;
  weight[0] = weight[1] = 0.0f;
#pragma unroll
  for (int tap = 0; tap < 2; ++tap) {
    int32_t at = column + tap;
    const float share = tap ? part : 1.0f - part;
    if (replicate) at = at < 0 ? 0 : at > columns - 1 ? columns - 1 : at;
    weight[0] += at == *first ? share : 0.0f;
    weight[1] += at == *first + 1 ? share : 0.0f;
  }
}

// uint8, kChannels beside each other, at least two columns.
template <int kChannels, typename Out>
__device__ __forceinline__ void polar_pixel_across(const PolarResampleParams& p, const uint8_t* image, float row,
                                                   float col, Out* out, int64_t plane) {
  const bool usable = row > -1e9f && row < 1e9f && col > -1e9f && col < 1e9f;  // false for NaN
  if (!usable) row = col = p.replicate_border ? 0.0f : -2.0f;
  const float row_floor = floorf(row), col_floor = floorf(col);
  const float row_part = row - row_floor;
  const int32_t row0 = static_cast<int32_t>(row_floor), rows = static_cast<int32_t>(p.in_rows);
  const int32_t end = static_cast<int32_t>((p.in_rows - 1) * p.stride_row + p.in_cols * kChannels);
  int32_t column;
  float weight[2], sum[kChannels] = {};
  pair_weights(static_cast<int32_t>(col_floor), col - col_floor, static_cast<int32_t>(p.in_cols), p.replicate_border,
               &column, weight);
#pragma unroll
  for (int tap = 0; tap < 2; ++tap) {
    const int32_t r = row0 + tap, inside = r < 0 ? 0 : r > rows - 1 ? rows - 1 : r;
    const float share = r == inside || p.replicate_border ? (tap ? row_part : 1.0f - row_part) : 0.0f;
    uint32_t bytes[2];
    load_neighbours<kChannels>(image, inside * static_cast<int32_t>(p.stride_row) + column * kChannels, end, bytes);
#pragma unroll
    for (int i = 0; i < 2 * kChannels; ++i)
      sum[i % kChannels] = fmaf(share * weight[i / kChannels], static_cast<float>(bytes[i / 4] >> 8 * (i % 4) & 255u),
                                sum[i % kChannels]);
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c) set(out + c * plane, p.normalize ? sum[c] * p.scale[c] + p.offset[c] : sum[c]);
}

template <PolarLoad kLoad, typename In, typename Out>
__global__ void __launch_bounds__(kPolarThreads)
    polar_resample_kernel(const PolarResampleParams p, const PolarPlan plan) {
  const int64_t plane = p.out_rows * p.out_cols;
  for (int64_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
    const PolarItem item = polar_item(p, plan, b);
    const In* image = static_cast<const In*>(p.images) + b * p.stride_batch;
    Out* out = static_cast<Out*>(p.out) + b * p.channels * plane + item.column;
    for (int64_t i = item.row; i < item.row_end; i += kPolarWarps) {
      const float radius = item.radius * polar_radius_share<float>(i, p.out_rows, p.outer_radius);
      const float row = item.center_row - radius * item.cosine, col = item.center_col + radius * item.sine;
      if constexpr (kLoad == PolarLoad::kSingle)
        polar_pixel(p, image, row, col, out + i * p.out_cols, plane);
      else
        polar_pixel_across<kLoad == PolarLoad::kRgb8 ? 3 : 4>(p, image, row, col, out + i * p.out_cols, plane);
    }
  }
}

// Every output pixel adds to its four taps, in no fixed order. `grad_images` has been set to zero.
template <typename Grad>
__global__ void __launch_bounds__(kPolarThreads)
    polar_resample_backward_kernel(const PolarResampleBackwardParams p, const PolarPlan plan) {
  const int64_t plane = p.out_rows * p.out_cols, in_plane = p.in_rows * p.in_cols;
  for (int64_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
    const PolarItem item = polar_item(p, plan, b);
    const int64_t first = b * p.channels;
    const Grad* grads = static_cast<const Grad*>(p.grad_out) + first * plane + item.column;
    float* images = p.grad_images + first * in_plane;
    for (int64_t i = item.row; i < item.row_end; i += kPolarWarps) {
      const float radius = item.radius * polar_radius_share<float>(i, p.out_rows, p.outer_radius);
      const BilinearTaps taps =
          bilinear_taps(item.center_row - radius * item.cosine, item.center_col + radius * item.sine, p.in_rows,
                        p.in_cols, p.in_cols, 1, p.replicate_border);
      for (int64_t c = 0; c < p.channels; ++c) {
        float grad = to_float(grads[c * plane + i * p.out_cols]);
        if (p.normalize) grad *= p.scale[c];
#pragma unroll
        for (int tap = 0; tap < 4; ++tap)
          if (taps.weight[tap] != 0.0f) atomic_add(images + c * in_plane + taps.offset[tap], taps.weight[tap] * grad);
      }
    }
  }
}

}  // namespace geoloc_fast::cuda
