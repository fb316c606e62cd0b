// The CUDA kernels of polar_resample in the emulator, against those of the CPU.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cuda/polar_resample_heuristics.h"
#include "tests/check.h"
#include "tests/polar_case.h"
#include "tests/simt/buffer.h"

namespace geoloc_fast {
namespace {

using simt::Buffer;
using simt::Order;
using namespace tests;
using Case = PolarCase;

struct Geometry {
  explicit Geometry(const Case& c) : center(c.center), radius(c.radius), heading(c.heading) {}
  void set(const Case& c, PolarGeometry* p) const { set_geometry(c, center, radius, heading, p); }
  Buffer<double> center, radius, heading;
};

template <typename In, typename Out>
void check_forward(const Case& c, const std::string& name) {
  const Geometry geometry(c);
  // An image that begins at no multiple of anything but its own elements.
  const int64_t pixels = c.channels * c.rows * c.cols, first = c.batch % 2;
  const Buffer<In> images(random_pixels<In>(c.batch * pixels + first, 1));
  PolarResampleParams p{};
  geometry.set(c, &p);
  set_images(c, images.data() + first, &p);
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
    const double off = (std::fabs(static_cast<double>(to_float(out[i])) - right) - rounding_of<Out>(right)) / unit;
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

void check_with_broken_numbers(const Case& c, const std::string& name) {
  check_all(c, name);
  Case broken = c;
  broken.center[0] = std::numeric_limits<double>::quiet_NaN(), broken.center[3] = 1e30, broken.center[5] = -1e300;
  broken.radius[3] = std::numeric_limits<double>::infinity();
  check_all(broken, "no number, " + name);
}

}  // namespace
}  // namespace geoloc_fast

int main() {
  using namespace geoloc_fast;
  plans();
  for (const simt::Order order : {simt::Order::kForward, simt::Order::kBackward, simt::Order::kRandom}) {
    simt::set_order(order, 1);
    tests::sizes_layouts_borders(check_all);
    check_all({3, 3, 50, 41, 64, 160, true, false, false, true}, "several blocks");
    check_all({0, 3, 50, 41, 6, 16, true, false, false, true}, "no image");
    tests::geometry_of_each_image(check_with_broken_numbers);
  }
  return tests::failures();
}
