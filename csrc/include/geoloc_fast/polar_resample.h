// polar_resample: satellite images, seen from their centre, as strips of azimuth columns.
// SPDX-License-Identifier: Apache-2.0
//
//   theta(b, j) = column0_deg + heading_deg[b] + 360 j / W                   degrees, clockwise from north
//   radius(b, i) = R[b] (H - 1 - i) / H   "inner"      or   R[b] (H - i) / H   "outer"
//   row = center_row[b] - radius cos(theta)            north is up: a smaller row
//   col = center_col[b] + radius sin(theta)            east is right: a larger column
//   out[b, c, i, j] = (bilinear(images[b, c], row, col) - mean[c]) / std[c]
//
//   image (S x S)                     strip (H x W), column0_deg = 180
//        north                        +--------------------------------+  i = 0: the horizon
//      +-------+                      |   west     north      east     |
//      |   |   |  west .. east  --->  |                                |
//      +-------+                      +--------------------------------+  i = H-1: the centre
//        south                        j = 0: south          j = W/2: north
//
// Pixel 0 of the image sits at 0.0 (index units). A tap outside the image counts as 0 (kZeros) or as the
// nearest pixel (kReplicate); with kZeros the mean is subtracted from that 0 like from any other value.
// A position that is not finite has no taps inside: 0 with kZeros, pixel (0, 0) with kReplicate.
//
// Numerics: coordinates in float64 on the CPU and float32 on the GPU, weights and sums in float32, one
// rounding to the output type; a uint8 output is rounded to nearest even and clamped. Reads at most four
// pixels an output pixel and writes each output once: the floor is input bytes + output bytes.
#pragma once
#include "geoloc_fast/types.h"

namespace geoloc_fast {

struct PolarResampleParams {
  const void* images;  // [batch, channels, in_rows, in_cols], any strides (in elements)
  void* out;           // [batch, channels, out_rows, out_cols], contiguous
  DType images_dtype;
  DType out_dtype;
  int64_t batch, channels, in_rows, in_cols, out_rows, out_cols;
  int64_t stride_batch, stride_channel, stride_row, stride_col;
  const double* center;       // [batch, 2] (row, col); null: (in_rows / 2, in_cols / 2)
  const double* max_radius;   // [batch]; null: half the shorter side
  const double* heading_deg;  // [batch]; null: 0
  double column0_deg;
  bool outer_radius;
  bool replicate_border;
  bool normalize;              // scale and shift below are used only then
  float scale[kMaxChannels];   // 1 / std
  float offset[kMaxChannels];  // -mean / std
};

namespace cpu {
Status polar_resample(const PolarResampleParams& params, int threads);
}

namespace cuda {
// Launches on `stream` (a cudaStream_t) of `device` and returns at once; pointers are device pointers.
Status polar_resample(const PolarResampleParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace geoloc_fast
