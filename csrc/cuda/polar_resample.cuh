// Device body of polar_resample. Formula and layout: geoloc_fast/polar_resample.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/polar_geometry.h"
#include "cuda/device.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::cuda {

// One thread an output pixel (all its channels): neighbouring threads hold neighbouring azimuths, so their
// writes are coalesced and their reads fall on a short arc.
template <typename In, typename Out>
__global__ void __launch_bounds__(256) polar_resample_kernel(const PolarResampleParams p) {
  const int64_t pixels = p.batch * p.out_rows * p.out_cols;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; pixel < pixels; pixel += step) {
    const int64_t j = pixel % p.out_cols, i = pixel / p.out_cols % p.out_rows, b = pixel / (p.out_cols * p.out_rows);
    const PolarView view = polar_view(p, b);
    const float radius = static_cast<float>(view.max_radius) * polar_radius_share<float>(i, p.out_rows, p.outer_radius);
    // Degrees are reduced to half turns in float64, so that a large heading costs no accuracy.
    const double half_turns =
        (p.column0_deg + view.heading_deg) / 180.0 + 2.0 * static_cast<double>(j) / static_cast<double>(p.out_cols);
    float sine, cosine;
    sincospif(static_cast<float>(half_turns - 2.0 * floor(half_turns * 0.5)), &sine, &cosine);
    const BilinearTaps taps = bilinear_taps(static_cast<float>(view.center_row) - radius * cosine,
                                            static_cast<float>(view.center_col) + radius * sine, p.in_rows, p.in_cols,
                                            p.stride_row, p.stride_col, p.replicate_border);
    const In* image = static_cast<const In*>(p.images) + b * p.stride_batch;
    Out* out = static_cast<Out*>(p.out) + (b * p.channels * p.out_rows + i) * p.out_cols + j;
    for (int64_t c = 0; c < p.channels; ++c) {
      const In* channel = image + c * p.stride_channel;
      float value = 0.0f;
      for (int tap = 0; tap < 4; ++tap)
        if (taps.weight[tap] != 0.0f) value += taps.weight[tap] * to_float(channel[taps.offset[tap]]);
      if (p.normalize) value = value * p.scale[c] + p.offset[c];
      set(out + c * p.out_rows * p.out_cols, value);
    }
  }
}

}  // namespace geoloc_fast::cuda
