// The first look at strips and queries: their size and energies.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cuda/strip_items.cuh"

namespace geoloc_fast::cuda {

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

}  // namespace geoloc_fast::cuda
