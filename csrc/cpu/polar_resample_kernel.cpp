// SPDX-License-Identifier: Apache-2.0
#include "common/half.h"
#include "common/polar_geometry.h"
#include "cpu/threads.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

constexpr double kRadPerDeg = 0.017453292519943295;

template <typename In, typename Out>
void resample_rows(const PolarResampleParams& p, int64_t begin, int64_t end) {
  for (int64_t line = begin; line < end; ++line) {
    const int64_t b = line / p.out_rows, i = line % p.out_rows;
    const PolarView view = polar_view(p, b);
    const double radius = view.max_radius * polar_radius_share<double>(i, p.out_rows, p.outer_radius);
    const In* image = static_cast<const In*>(p.images) + b * p.stride_batch;
    Out* out = static_cast<Out*>(p.out) + (b * p.channels * p.out_rows + i) * p.out_cols;
    for (int64_t j = 0; j < p.out_cols; ++j) {
      const double theta =
          (p.column0_deg + view.heading_deg + 360.0 * static_cast<double>(j) / static_cast<double>(p.out_cols)) *
          kRadPerDeg;
      const BilinearTaps taps =
          bilinear_taps(view.center_row - radius * std::cos(theta), view.center_col + radius * std::sin(theta),
                        p.in_rows, p.in_cols, p.stride_row, p.stride_col, p.replicate_border);
      for (int64_t c = 0; c < p.channels; ++c) {
        const In* channel = image + c * p.stride_channel;
        float value = 0.0f;
        for (int tap = 0; tap < 4; ++tap)
          // A pixel of weight 0 is not read into the sum: 0 * NaN would spread a neighbour's NaN.
          if (taps.weight[tap] != 0.0f) value += taps.weight[tap] * to_float(channel[taps.offset[tap]]);
        if (p.normalize) value = value * p.scale[c] + p.offset[c];
        out[c * p.out_rows * p.out_cols + j] = from_float<Out>(value);
      }
    }
  }
}

template <typename In>
Status resample_from(const PolarResampleParams& p, int threads) {
  auto run = [&](auto rows) {
    auto task = [&](int64_t begin, int64_t end) { rows(p, begin, end); };
    parallel_for(p.batch * p.out_rows, 8, threads, task);
    return Status::kOk;
  };
  switch (p.out_dtype) {
    case DType::kUInt8: return run(resample_rows<In, uint8_t>);
    case DType::kFloat16: return run(resample_rows<In, Float16>);
    case DType::kBFloat16: return run(resample_rows<In, BFloat16>);
    case DType::kFloat32: return run(resample_rows<In, float>);
  }
  return Status::kBadDType;
}

}  // namespace

Status polar_resample(const PolarResampleParams& p, int threads) {
  switch (p.images_dtype) {
    case DType::kUInt8: return resample_from<uint8_t>(p, threads);
    case DType::kFloat16: return resample_from<Float16>(p, threads);
    case DType::kBFloat16: return resample_from<BFloat16>(p, threads);
    case DType::kFloat32: return resample_from<float>(p, threads);
  }
  return Status::kBadDType;
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
