// How azimuth kernels take strips in: any strides and dtype, scaled by a power of two.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

#include "cuda/azimuth_match_heuristics.h"
#include "cuda/device.h"

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

}  // namespace geoloc_fast::cuda
