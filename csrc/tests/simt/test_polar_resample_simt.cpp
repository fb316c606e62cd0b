// The CUDA kernels of polar_resample in the emulator, against those of the CPU.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "common/half.h"
#include "cuda/polar_resample_heuristics.h"
#include "geoloc_fast/polar_resample.h"
#include "tests/check.h"
#include "tests/simt/buffer.h"

namespace geoloc_fast {
namespace {

using simt::Buffer;
using simt::Order;

struct Case {
  int64_t batch, channels, rows, cols, out_rows, out_cols;
  bool across, outer, replicate, normalize;
  std::vector<double> center, radius, heading;  // empty or one a image
};

template <typename T>
constexpr DType dtype_of() {
  if (sizeof(T) == 1) return DType::kUInt8;
  if (sizeof(T) == 4) return DType::kFloat32;
  return std::is_same_v<T, Float16> ? DType::kFloat16 : DType::kBFloat16;
}

struct Geometry {
  explicit Geometry(const Case& c) : center(c.center), radius(c.radius), heading(c.heading) {}
  void set(const Case& c, PolarGeometry* p) const {
    p->batch = c.batch, p->channels = c.channels, p->in_rows = c.rows, p->in_cols = c.cols;
    p->out_rows = c.out_rows, p->out_cols = c.out_cols;
    p->center = center.size() ? center.data() : nullptr;
    p->max_radius = radius.size() ? radius.data() : nullptr;
    p->heading_deg = heading.size() ? heading.data() : nullptr;
    p->column0_deg = 180.0;
    p->outer_radius = c.outer;
    p->replicate_border = c.replicate;
  }
  Buffer<double> center, radius, heading;
};

template <typename T>
std::vector<T> random_pixels(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<T> pixels(static_cast<size_t>(count));
  for (T& pixel : pixels) pixel = from_float<T>(static_cast<float>(random() % 256));
  return pixels;
}

template <typename In, typename Out>
void check_forward(const Case& c, const std::string& name) {
  const Geometry geometry(c);
  // An image that begins at no multiple of anything but its own elements.
  const int64_t pixels = c.channels * c.rows * c.cols, first = c.batch % 2;
  const Buffer<In> images(random_pixels<In>(c.batch * pixels + first, 1));
  PolarResampleParams p{};
  geometry.set(c, &p);
  p.images = images.data() + first;
  p.images_dtype = dtype_of<In>(), p.out_dtype = dtype_of<Out>();
  p.stride_batch = pixels;
  p.stride_channel = c.across ? 1 : c.rows * c.cols;
  p.stride_col = c.across ? c.channels : 1;
  p.stride_row = c.cols * p.stride_col;
  p.normalize = c.normalize;
  for (int64_t n = 0; n < c.channels && n < kMaxChannels; ++n) {
    p.scale[n] = 1.0f / static_cast<float>(50 + n);
    p.offset[n] = -2.0f + static_cast<float>(n);
  }
  const int64_t count = c.batch * c.channels * c.out_rows * c.out_cols;
  std::vector<float> expected(static_cast<size_t>(count));
  p.out = expected.data(), p.out_dtype = DType::kFloat32;
  CHECK(cpu::polar_resample(p, 1) == Status::kOk);
  const Buffer<Out> out(count);
  p.out = out.data(), p.out_dtype = dtype_of<Out>();
  const Status status = cuda::polar_resample(p, 0, nullptr);
  const std::string error = simt::take_error();
  CHECK(status == Status::kOk && error.empty(), "%s: %s", name.c_str(), error.c_str());
  double worst = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const double unit = c.normalize ? static_cast<double>(p.scale[i / (c.out_rows * c.out_cols) % c.channels]) : 1.0;
    double right = static_cast<double>(expected[i]);
    if (sizeof(Out) == 1) right = std::fmin(std::fmax(right, 0.0), 255.0);
    const double rounding = sizeof(Out) == 1                ? 0.5
                            : std::is_same_v<Out, BFloat16> ? std::fabs(right) / 256
                            : sizeof(Out) == 2              ? std::fabs(right) / 2048
                                                            : 0.0;
    const double off = (std::fabs(static_cast<double>(to_float(out[i])) - right) - rounding) / unit;
    if (!(off <= worst)) worst = off;
  }
  CHECK(worst <= 0.07, "%s: %g grey levels off", name.c_str(), worst);
}

template <typename Grad>
void check_backward(const Case& c, const std::string& name) {
  const Geometry geometry(c);
  const int64_t pixels = c.batch * c.channels * c.rows * c.cols;
  const Buffer<Grad> grad_out(random_pixels<Grad>(c.batch * c.channels * c.out_rows * c.out_cols, 2));
  PolarResampleBackwardParams p{};
  geometry.set(c, &p);
  p.grad_out = grad_out.data(), p.grad_out_dtype = dtype_of<Grad>();
  p.normalize = c.normalize;
  for (int64_t n = 0; n < c.channels && n < kMaxChannels; ++n) p.scale[n] = 0.25f;
  std::vector<float> expected(static_cast<size_t>(pixels));
  p.grad_images = expected.data();
  CHECK(cpu::polar_resample_backward(p, 1) == Status::kOk);
  const Buffer<float> grad(pixels);
  p.grad_images = grad.data();
  const Status status = cuda::polar_resample_backward(p, 0, nullptr);
  const std::string error = simt::take_error();
  CHECK(status == Status::kOk && error.empty(), "%s: %s", name.c_str(), error.c_str());
  double worst = 0.0;
  for (int64_t i = 0; i < pixels; ++i) {
    const double off = std::fabs(static_cast<double>(grad[i] - expected[i])) / (1000.0 + std::fabs(expected[i]));
    if (!(off <= worst)) worst = off;
  }
  CHECK(worst <= 1e-5, "%s backward: relative error %g", name.c_str(), worst);
}

void check_all(const Case& c, const std::string& name) {
  check_forward<uint8_t, float>(c, name + " uint8 -> float");
  check_forward<uint8_t, uint8_t>(c, name + " uint8 -> uint8");
  check_forward<uint8_t, BFloat16>(c, name + " uint8 -> bf16");
  check_forward<float, float>(c, name + " float -> float");
  check_forward<BFloat16, BFloat16>(c, name + " bf16 -> bf16");
  check_forward<Float16, Float16>(c, name + " fp16 -> fp16");
  if (!c.across) {
    check_backward<float>(c, name);
    check_backward<BFloat16>(c, name);
  }
}

void plans() {
  using namespace cuda;
  for (const int64_t batch : {int64_t{1}, int64_t{256}, int64_t{1} << 30})
    for (const int64_t rows : {1, 127, 128, 4096})
      for (const int64_t columns : {1, 512, 1000}) {
        PolarGeometry p{};
        p.batch = batch, p.out_rows = rows, p.out_cols = columns;
        const PolarPlan plan = polar_plan(p);
        const int64_t row_tiles = plan.tiles / plan.column_tiles;
        CHECK(plan.rows % kPolarWarps == 0 && row_tiles * plan.rows >= rows && (row_tiles - 1) * plan.rows < rows);
        CHECK(plan.column_tiles * kPolarColumns >= columns && plan.images <= 65535 && plan.images >= 1);
      }
  PolarResampleParams p{};
  p.images_dtype = DType::kUInt8, p.channels = 3, p.in_rows = p.in_cols = 512;
  p.stride_channel = 1, p.stride_col = 3, p.stride_row = 3 * 512, p.stride_batch = 3 * 512 * 512;
  CHECK(polar_load(p) == PolarLoad::kRgb8);
  p.stride_row = 0;
  CHECK(polar_load(p) == PolarLoad::kSingle);
  p.channels = p.stride_col = 4, p.stride_row = 4 * 512;
  CHECK(polar_load(p) == PolarLoad::kRgba8);
  p.images = reinterpret_cast<const void*>(uintptr_t{2});
  CHECK(polar_load(p) == PolarLoad::kSingle);
}

void sizes_layouts_borders() {
  const int64_t sizes[][2] = {{1, 1}, {1, 6}, {5, 1}, {2, 2}, {17, 23}, {40, 33}};
  for (const auto& size : sizes)
    for (int64_t channels : {1, 3, 4, 7})
      for (int kind = 0; kind < 8; ++kind)
        check_all({2,
                   channels,
                   size[0],
                   size[1],
                   5,
                   19,
                   (kind & 1) != 0,
                   (kind & 2) != 0,
                   (kind & 4) != 0,
                   (kind & 1) == 0,
                   {},
                   {},
                   {}},
                  std::to_string(size[0]) + "x" + std::to_string(size[1]) + "x" + std::to_string(channels) + " kind " +
                      std::to_string(kind));
  check_all({3, 3, 50, 41, 64, 160, true, false, false, true, {}, {}, {}}, "several blocks");
  check_all({0, 3, 50, 41, 6, 16, true, false, false, true, {}, {}, {}}, "no image");
}

void geometry_of_each_image() {
  for (bool across : {false, true})
    for (bool replicate : {false, true}) {
      Case c{5, 3, 20, 28, 70, 37, across, false, replicate, true, {}, {}, {}};
      c.center = {3.5, 22.25, -300.0, 500.0, 20.0, 28.0, 4.0, 7.0, 10.0, 14.0};
      c.radius = {12.0, 80.0, 30.0, 0.0, -9.0};
      c.heading = {0.0, 33.3, -721.0, 90.0, 1e6 + 0.25};
      check_all(c, std::string("geometry, ") + (across ? "across" : "apart") + (replicate ? ", replicate" : ""));
      c.center[0] = std::numeric_limits<double>::quiet_NaN(), c.center[3] = 1e30, c.center[5] = -1e300;
      c.radius[3] = std::numeric_limits<double>::infinity();
      check_all(c, std::string("no number, ") + (across ? "across" : "apart") + (replicate ? ", replicate" : ""));
    }
}

}  // namespace
}  // namespace geoloc_fast

int main() {
  using namespace geoloc_fast;
  plans();
  for (const simt::Order order : {simt::Order::kForward, simt::Order::kBackward, simt::Order::kRandom}) {
    simt::set_order(order, 1);
    sizes_layouts_borders();
    geometry_of_each_image();
  }
  return tests::failures();
}
