// polar_resample against loops in float64, for every instruction set and path. Images lie in heap blocks of exactly
// their size, so that the address sanitizer sees a read past them.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tests/check.h"
#include "tests/polar_case.h"

namespace geoloc_fast {
namespace {

using namespace tests;
using Case = PolarCase;

constexpr double kPi = 3.14159265358979323846;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

void position(const Case& c, int64_t b, int64_t i, int64_t j, double* row, double* col) {
  const size_t at = static_cast<size_t>(b);
  const double center_row = c.center.empty() ? static_cast<double>(c.rows) / 2 : c.center[2 * at];
  const double center_col = c.center.empty() ? static_cast<double>(c.cols) / 2 : c.center[2 * at + 1];
  const double radius = c.radius.empty() ? static_cast<double>(std::min(c.rows, c.cols)) / 2 : c.radius[at];
  const double heading = c.heading.empty() ? 0.0 : c.heading[at];
  const double r =
      radius * static_cast<double>(c.outer ? c.out_rows - i : c.out_rows - 1 - i) / static_cast<double>(c.out_rows);
  const double theta =
      (180.0 + heading + 360.0 * static_cast<double>(j) / static_cast<double>(c.out_cols)) * kPi / 180.0;
  *row = center_row - r * std::cos(theta);
  *col = center_col + r * std::sin(theta);
}

// tap(row, col, weight) for the four taps that exist.
template <typename Tap>
void for_taps(const Case& c, double row, double col, Tap tap) {
  if (!(std::fabs(row) < 1e9 && std::fabs(col) < 1e9)) {
    if (!c.replicate) return;
    row = col = 0.0;
  }
  const double row0 = std::floor(row), col0 = std::floor(col);
  for (int k = 0; k < 4; ++k) {
    const double r = row0 + (k >> 1), q = col0 + (k & 1);
    const double weight = (1.0 - std::fabs(row - r)) * (1.0 - std::fabs(col - q));
    const bool inside = r >= 0 && r < static_cast<double>(c.rows) && q >= 0 && q < static_cast<double>(c.cols);
    if (inside || c.replicate)
      tap(static_cast<int64_t>(std::fmin(std::fmax(r, 0), static_cast<double>(c.rows - 1))),
          static_cast<int64_t>(std::fmin(std::fmax(q, 0), static_cast<double>(c.cols - 1))), weight);
  }
}

template <typename In>
PolarResampleParams forward_params(const Case& c, const std::vector<In>& images) {
  PolarResampleParams p{};
  set_geometry(c, c.center, c.radius, c.heading, &p);
  set_images(c, images.data(), &p);
  return p;
}

template <typename Out>
std::vector<Out> run(PolarResampleParams p, int threads) {
  std::vector<Out> out(static_cast<size_t>(p.batch * p.channels * p.out_rows * p.out_cols));
  std::memset(static_cast<void*>(out.data()), 0xff, out.size() * sizeof(Out));  // NaN for floats
  p.out = out.data();
  p.out_dtype = dtype_of<Out>();
  CHECK(cpu::polar_resample(p, threads) == Status::kOk, "status");
  return out;
}

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename In, typename Out>
void check_forward(const Case& c, const std::string& name) {
  const int64_t count = c.batch * c.channels * c.rows * c.cols;
  const std::vector<In> images = random_pixels<In>(count, 1);
  const PolarResampleParams p = forward_params(c, images);
  std::vector<Out> first;
  for_each_isa([&](const char* isa) {
    const std::vector<Out> out = run<Out>(p, 1);
    for (int threads : {2, 5}) CHECK(same_bits(out, run<Out>(p, threads)), "%s %s", isa, name.c_str());
    if (first.empty()) first = out;
    CHECK(same_bits(out, first), "%s differs from baseline: %s", isa, name.c_str());
  });
  double worst = 0.0;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t n = 0; n < c.channels; ++n)
      for (int64_t i = 0; i < c.out_rows; ++i)
        for (int64_t j = 0; j < c.out_cols; ++j) {
          double row, col, expected = 0.0;
          position(c, b, i, j, &row, &col);
          for_taps(c, row, col, [&](int64_t r, int64_t q, double weight) {
            expected +=
                weight * static_cast<double>(to_float(images[static_cast<size_t>(
                             b * p.stride_batch + n * p.stride_channel + r * p.stride_row + q * p.stride_col)]));
          });
          double unit = 1.0;
          if (c.normalize) {
            unit = static_cast<double>(p.scale[n]);
            expected = expected * unit + static_cast<double>(p.offset[n]);
          }
          if (dtype_of<Out>() == DType::kUInt8) expected = std::fmin(std::fmax(expected, 0.0), 255.0);
          const double actual =
              to_float(first[static_cast<size_t>(((b * c.channels + n) * c.out_rows + i) * c.out_cols + j)]);
          // In grey levels, on top of one rounding to the output type.
          const double error = (std::fabs(actual - expected) - rounding_of<Out>(expected)) / unit;
          if (!(error <= worst)) worst = error;
        }
  const double allowed = dtype_of<In>() == DType::kUInt8 ? 0.06 : 2e-4;
  CHECK(worst <= allowed, "%s: %g grey levels off, %g allowed", name.c_str(), worst, allowed);
}

template <typename Grad>
void check_backward(const Case& c, const std::string& name) {
  const size_t plane = static_cast<size_t>(c.rows * c.cols), out_plane = static_cast<size_t>(c.out_rows * c.out_cols);
  const size_t planes = static_cast<size_t>(c.batch * c.channels);
  const std::vector<Grad> grad_out = random_pixels<Grad>(static_cast<int64_t>(planes * out_plane), 2);
  PolarResampleBackwardParams p{};
  set_geometry(c, c.center, c.radius, c.heading, &p);
  p.grad_out = grad_out.data();
  p.grad_out_dtype = dtype_of<Grad>();
  p.normalize = c.normalize;
  for (int64_t n = 0; n < c.channels && n < kMaxChannels; ++n) p.scale[n] = 0.25f;
  std::vector<float> first;
  for_each_isa([&](const char* isa) {
    for (int threads : {1, 2, 5}) {
      std::vector<float> grad(planes * plane, std::numeric_limits<float>::quiet_NaN());
      p.grad_images = grad.data();
      CHECK(cpu::polar_resample_backward(p, threads) == Status::kOk, "status");
      if (first.empty()) first = grad;
      CHECK(same_bits(grad, first), "%s, %d threads: %s", isa, threads, name.c_str());
    }
  });
  std::vector<double> expected(planes * plane, 0.0), amount(planes * plane, 0.0);
  for (size_t n = 0; n < planes; ++n)
    for (int64_t i = 0; i < c.out_rows; ++i)
      for (int64_t j = 0; j < c.out_cols; ++j) {
        double row, col;
        position(c, static_cast<int64_t>(n) / c.channels, i, j, &row, &col);
        const double grad =
            (c.normalize ? 0.25 : 1.0) *
            static_cast<double>(to_float(grad_out[n * out_plane + static_cast<size_t>(i * c.out_cols + j)]));
        for_taps(c, row, col, [&](int64_t r, int64_t q, double weight) {
          expected[n * plane + static_cast<size_t>(r * c.cols + q)] += weight * grad;
          amount[n * plane + static_cast<size_t>(r * c.cols + q)] += std::fabs(grad);
        });
      }
  double worst = 0.0;
  for (size_t k = 0; k < expected.size(); ++k) {
    const double error = std::fabs(static_cast<double>(first[k]) - expected[k]) / (1.0 + amount[k]);
    if (!(error <= worst)) worst = error;
  }
  CHECK(worst <= 1e-5, "%s: relative error %g", name.c_str(), worst);
}

void check_all(const Case& c, const std::string& name) {
  check_forward<uint8_t, float>(c, name + " uint8 -> float");
  check_forward<uint8_t, uint8_t>(c, name + " uint8 -> uint8");
  check_forward<uint8_t, BFloat16>(c, name + " uint8 -> bf16");
  check_forward<float, float>(c, name + " float -> float");
  check_forward<float, Float16>(c, name + " float -> fp16");
  check_forward<BFloat16, float>(c, name + " bf16 -> float");
  check_forward<BFloat16, BFloat16>(c, name + " bf16 -> bf16");
  check_forward<Float16, float>(c, name + " fp16 -> float");
  check_forward<Float16, Float16>(c, name + " fp16 -> fp16");
  if (!c.across) {
    check_backward<float>(c, name + " backward float");
    check_backward<BFloat16>(c, name + " backward bf16");
    check_backward<Float16>(c, name + " backward fp16");
  }
}

void test_geometry_that_is_no_number() {
  for (bool across : {false, true})
    for (bool replicate : {false, true}) {
      Case c{3, 3, 9, 8, 6, 20, across, false, replicate, false};
      c.center = {kNaN, 2.0, 1e30, 4.0, 4.0, -1e300};
      c.radius = {4.0, 1.0, std::numeric_limits<double>::infinity()};
      const std::vector<uint8_t> images = random_pixels<uint8_t>(3 * 3 * 9 * 8, 4);
      const PolarResampleParams p = forward_params(c, images);
      CHECK(cpu::polar_path(p) == cpu::PolarPath::kGeneric, "not finite, yet a fast path");
      for_each_isa([&](const char* isa) {
        const std::vector<float> out = run<float>(p, 2);
        for (int64_t k = 0; k < static_cast<int64_t>(out.size()); ++k) {
          const int64_t b = k / (3 * 6 * 20), n = k / (6 * 20) % 3;
          const float corner = images[static_cast<size_t>(b * p.stride_batch + n * p.stride_channel)];
          CHECK(out[static_cast<size_t>(k)] == (replicate ? corner : 0.0f), "%s: element %d is %g", isa,
                static_cast<int>(k), static_cast<double>(out[static_cast<size_t>(k)]));
        }
      });
      check_backward<float>(c, "backward of a geometry that is no number");
    }
}

void test_paths() {
  using cpu::PolarPath;
  Case c{2, 3, 16, 16, 4, 8, true, false, false, false};
  const std::vector<uint8_t> bytes(4 * 2 * 16 * 16);
  const std::vector<float> floats(4 * 2 * 16 * 16);
#if defined(GEOLOC_FAST_X86_KERNELS)
  CHECK(cpu::polar_path(forward_params(c, bytes)) == PolarPath::kRgb8, "rgb8");
  CHECK(cpu::polar_path(forward_params(c, floats)) == PolarPath::kRgb, "rgb");
  PolarResampleParams overlapping = forward_params(c, bytes);
  overlapping.stride_row = 0;
  CHECK(cpu::polar_path(overlapping) == PolarPath::kGeneric, "rows that overlap");
  c.across = false;
  CHECK(cpu::polar_path(forward_params(c, bytes)) == PolarPath::kPlanar8, "planar8");
  CHECK(cpu::polar_path(forward_params(c, floats)) == PolarPath::kPlanar, "planar");
  c.channels = 4, c.across = true;
  CHECK(cpu::polar_path(forward_params(c, bytes)) == PolarPath::kRgba8, "rgba8");
  CHECK(cpu::polar_path(forward_params(c, floats)) == PolarPath::kRgba, "rgba");
#endif
  c.rows = 1;
  CHECK(cpu::polar_path(forward_params(c, bytes)) == PolarPath::kGeneric, "one row");
}

void test_uniform_images_stay_uniform() {
  for (int value : {1, 127, 255}) {
    Case c{1, 3, 31, 30, 16, 50, true, false, true, false};
    const std::vector<uint8_t> images(3 * 31 * 30, static_cast<uint8_t>(value));
    for (float pixel : run<float>(forward_params(c, images), 1))
      CHECK(pixel == static_cast<float>(value), "%g instead of %d", static_cast<double>(pixel), value);
  }
}

}  // namespace
}  // namespace geoloc_fast

int main() {
  geoloc_fast::test_paths();
  geoloc_fast::tests::sizes_layouts_borders(geoloc_fast::check_all);
  geoloc_fast::tests::geometry_of_each_image(geoloc_fast::check_all);
  geoloc_fast::test_geometry_that_is_no_number();
  geoloc_fast::test_uniform_images_stay_uniform();
  return geoloc_fast::tests::failures();
}
