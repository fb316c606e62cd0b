// Backward of polar_resample: every output pixel adds to its four taps. A thread owns a band of rows of one image
// and passes over the taps that lie elsewhere, so nothing is added by two threads and the order of the additions to
// a pixel is that of the output pixels, however many bands there are.
// SPDX-License-Identifier: Apache-2.0
#include "common/half.h"
#include "common/polar_geometry.h"
#include "cpu/polar_tile.h"
#include "cpu/threads.h"
#include "geoloc_fast/polar_resample.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

struct Band {
  int64_t image, first_row, end_row;
};

template <typename Grad>
void scatter_generic(const PolarResampleBackwardParams& p, const Band& band, const Angles& steps) {
  const PolarView view = polar_view(p, band.image);
  for (int64_t column = 0; column < p.out_cols; column += kTileColumns) {
    const Angles angles = tile_angles(steps, p.column0_deg + view.heading_deg, column, p.out_cols);
    for (int64_t i = 0; i < p.out_rows; ++i) {
      const double radius = view.max_radius * polar_radius_share<double>(i, p.out_rows, p.outer_radius);
      for (int64_t k = 0; k < kTileColumns && column + k < p.out_cols; ++k) {
        const BilinearTaps taps =
            bilinear_taps(view.center_row - radius * angles.cosine[k], view.center_col + radius * angles.sine[k],
                          p.in_rows, p.in_cols, p.in_cols, 1, p.replicate_border);
        for (int64_t c = 0; c < p.channels; ++c) {
          const int64_t plane = band.image * p.channels + c;
          float grad =
              to_float(static_cast<const Grad*>(p.grad_out)[(plane * p.out_rows + i) * p.out_cols + column + k]);
          if (p.normalize) grad *= p.scale[c];
          float* to = p.grad_images + plane * p.in_rows * p.in_cols;
          for (int tap = 0; tap < 4; ++tap)
            if (taps.weight[tap] != 0.0f && taps.offset[tap] >= band.first_row * p.in_cols &&
                taps.offset[tap] < band.end_row * p.in_cols)
              to[taps.offset[tap]] += taps.weight[tap] * grad;
        }
      }
    }
  }
}

#if defined(GEOLOC_FAST_POLAR_LANES)

GEOLOC_FAST_INLINE F32 load_grad(const float* from) { return *(const F32Unaligned*)from; }
template <typename Half>
GEOLOC_FAST_INLINE F32 load_grad(const Half* from) {
  return widen(
      load_words16([&](int lane) __attribute__((always_inline)) { return static_cast<const void*>(from + 4 * lane); }),
      Half{});
}

// One channel's share of a tile.
template <typename Grad>
void scatter_tile(const Grad* grad_out, float scale, const FloatRow* rows, int64_t row_count, int64_t columns,
                  const PolarResampleBackwardParams& p, const Band& band, float* to) {
  const int64_t first = band.first_row * p.in_cols, end = band.end_row * p.in_cols;
  for (int64_t i = 0; i < row_count; ++i, grad_out += p.out_cols) {
    alignas(64) float part[4][kTileColumns];
    Grad some[kTileColumns] = {};
    const Grad* grad = grad_out;
    if (columns < kTileColumns) {
      for (int64_t k = 0; k < columns; ++k) some[k] = grad_out[k];
      grad = some;
    }
    for (int at = 0; at < kTileColumns; at += kPixels) {
      const F32 value = load_grad(grad + at) * scale;
      for (int tap = 0; tap < 4; ++tap) {
        // A tap of weight 0 gets nothing: 0 * NaN would spread a NaN of grad_out.
        const F32 weight = load_f32(rows[i].weight[tap] + at);
        *(F32*)(part[tap] + at) = (F32)((I32)value & (weight != 0.0f)) * weight;
      }
    }
    for (int64_t k = 0; k < columns; ++k) {
      const int64_t upper = rows[i].offset[k], lower = upper + p.in_cols;
      // One float at a time: a wider load would overlap what the pixel before has just stored, and wait for it.
      if (upper >= first && upper < end) {
        to[upper] += part[0][k];
        to[upper + 1] += part[1][k];
      }
      if (lower >= first && lower < end) {
        to[lower] += part[2][k];
        to[lower + 1] += part[3][k];
      }
    }
  }
}

template <typename Grad>
void scatter_planar(const PolarResampleBackwardParams& p, const Band& band, const Angles& steps) {
  constexpr int64_t kRows = 64;
  const PolarView view = polar_view(p, band.image);
  FloatRow rows[kRows];
  for (int64_t column = 0; column < p.out_cols; column += kTileColumns) {
    const Angles angles = tile_angles(steps, p.column0_deg + view.heading_deg, column, p.out_cols);
    const int64_t columns = p.out_cols - column < kTileColumns ? p.out_cols - column : kTileColumns;
    for (int64_t row = 0; row < p.out_rows; row += kRows) {
      const int64_t count = p.out_rows - row < kRows ? p.out_rows - row : kRows;
      fill_rows(rows, row, count, p, view, angles, p.in_cols, 1);
      for (int64_t c = 0; c < p.channels; ++c) {
        const int64_t plane = band.image * p.channels + c;
        scatter_tile(static_cast<const Grad*>(p.grad_out) + (plane * p.out_rows + row) * p.out_cols + column,
                     p.normalize ? p.scale[c] : 1.0f, rows, count, columns, p, band,
                     p.grad_images + plane * p.in_rows * p.in_cols);
      }
    }
  }
}

#endif  // GEOLOC_FAST_POLAR_LANES

template <typename Grad>
Status scatter(const PolarResampleBackwardParams& p, [[maybe_unused]] PolarPath path, int threads) {
  const Angles steps = column_steps(p.out_cols);
  // Two bands a thread where images are few: each band looks at every output pixel, which is not free.
  const int64_t wanted = p.batch >= 2 * threads ? 1 : (2 * threads + p.batch - 1) / p.batch;
  const int64_t most = p.in_rows / 16 + 1, bands = wanted < most ? wanted : most;
  auto task = [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item % bands;
      const Band band{item / bands, n * p.in_rows / bands, (n + 1) * p.in_rows / bands};
      for (int64_t c = 0; c < p.channels; ++c) {
        float* plane = p.grad_images + (band.image * p.channels + c) * p.in_rows * p.in_cols;
        __builtin_memset(plane + band.first_row * p.in_cols, 0,
                         static_cast<size_t>((band.end_row - band.first_row) * p.in_cols) * sizeof(float));
      }
#if defined(GEOLOC_FAST_POLAR_LANES)
      if (path == PolarPath::kPlanar) {
        scatter_planar<Grad>(p, band, steps);
        continue;
      }
#endif
      scatter_generic<Grad>(p, band, steps);
    }
  };
  parallel_for(p.batch * bands, 1, threads, task);
  return Status::kOk;
}

}  // namespace

Status polar_resample_backward(const PolarResampleBackwardParams& p, PolarPath path, int threads) {
  if (p.batch == 0 || p.channels == 0 || p.in_rows == 0 || p.in_cols == 0) return Status::kOk;
  switch (p.grad_out_dtype) {
    case DType::kFloat16: return scatter<Float16>(p, path, threads);
    case DType::kBFloat16: return scatter<BFloat16>(p, path, threads);
    case DType::kFloat32: return scatter<float>(p, path, threads);
    case DType::kUInt8: break;
  }
  return Status::kBadDType;
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
