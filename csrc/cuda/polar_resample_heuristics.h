// Launch choices of polar_resample: pure functions of the shape, testable without a GPU.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::cuda {

// A warp is 32 columns of a row; the warps of a block stand on neighbouring rows, so that they read neighbouring arcs.
constexpr int kPolarColumns = 32, kPolarWarps = 8, kPolarThreads = kPolarColumns * kPolarWarps;

enum class PolarLoad { kSingle, kRgb8, kRgba8 };

struct PolarPlan {
  int32_t rows;  // of a block: what a thread's sine and cosine are shared by, times the warps
  int32_t column_tiles;
  int64_t tiles;         // of an image: grid x
  int64_t images;        // at a time: grid y
  double column0, step;  // half turns of column 0 and from one column to the next
};

// Long columns of rows where there is work for every multiprocessor many times over, short ones where there is not.
inline PolarPlan polar_plan(const PolarGeometry& p) {
  PolarPlan plan{};
  const int64_t column_tiles = (p.out_cols + kPolarColumns - 1) / kPolarColumns;
  for (plan.rows = 8 * kPolarWarps;; plan.rows /= 2) {
    plan.tiles = column_tiles * ((p.out_rows + plan.rows - 1) / plan.rows);
    if (plan.rows == kPolarWarps || p.batch * plan.tiles >= 2048) break;
  }
  plan.column_tiles = static_cast<int32_t>(column_tiles);
  plan.images = p.batch < 65535 ? p.batch : 65535;
  plan.column0 = p.column0_deg / 180.0;
  plan.step = 2.0 / static_cast<double>(p.out_cols);
  return plan;
}

// uint8 pixels whose channels lie beside each other are read as words, both neighbours of a row at once.
inline PolarLoad polar_load(const PolarResampleParams& p) {
  constexpr int64_t kLimit = int64_t{1} << 30;
  const bool across = p.images_dtype == DType::kUInt8 && p.stride_channel == 1 && p.stride_col == p.channels;
  const bool small = p.in_cols >= 2 && p.stride_row >= p.in_cols * p.stride_col && p.in_rows * p.stride_row < kLimit;
  if (!across || !small) return PolarLoad::kSingle;
  if (p.channels == 3) return PolarLoad::kRgb8;
  const bool aligned = (reinterpret_cast<uintptr_t>(p.images) | static_cast<uintptr_t>(p.stride_row) |
                        static_cast<uintptr_t>(p.stride_batch)) %
                           4 ==
                       0;
  return p.channels == 4 && aligned ? PolarLoad::kRgba8 : PolarLoad::kSingle;
}

}  // namespace geoloc_fast::cuda
