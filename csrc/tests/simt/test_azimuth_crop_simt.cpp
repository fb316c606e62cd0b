// The CUDA kernels of azimuth_crop and gumbel_noise in the emulator, against those of the CPU.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/azimuth_crop_heuristics.h"
#include "geoloc_fast/azimuth_crop.h"
#include "geoloc_fast/gumbel_noise.h"
#include "tests/simt/strip_items.h"

namespace geoloc_fast {
namespace {

using namespace simt;

constexpr double kScale = 0.3, kTau = 0.7;  // correlations here are tens

struct Case {
  int64_t batch, channels, height, query_columns, columns;
  Selection select;
  Floats query, strips, noise, grad_crop, grad_score;
  std::vector<int64_t> width;

  Case(int64_t b, int64_t c, int64_t h, int64_t wq, int64_t w, Selection s)
      : batch(b), channels(c), height(h), query_columns(wq), columns(w), select(s) {
    query = random_values(b * c * h * wq, 1);
    strips = random_values(b * c * h * w, 2);
    noise = random_values(b * w, 3);
    grad_crop = random_values(b * c * h * wq, 4);
    grad_score = random_values(b, 5);
    for (int64_t i = 0; i < b; ++i) width.push_back(1 + (3 * i + wq - 1) % wq);
  }
  bool gumbel() const { return select == Selection::kGumbel; }
};

struct Answer {
  Floats crop, score, grad_query, grad_strips;
  std::vector<int64_t> shift;
  std::vector<double> grad_scale;
};

template <typename T>
Answer on_cpu(const Case& c) {
  const Items<T> query(c.query, c.batch, c.channels, c.height, c.query_columns, false);
  const Items<T> strips(c.strips, c.batch, c.channels, c.height, c.columns, false);
  Answer e;
  e.crop.resize(c.query.size()), e.score.resize(c.width.size()), e.shift.resize(c.width.size());
  e.grad_query.resize(c.query.size()), e.grad_strips.resize(c.strips.size());
  e.grad_scale.resize(c.gumbel() ? c.width.size() : 0);
  const Memory space(cpu::azimuth_crop_workspace(c.channels * c.height, c.query_columns, c.columns, 1));
  AzimuthCropParams p{};
  p.query = query.tensor, p.strips = strips.tensor, p.query_width = c.width.data();
  p.select = c.select, p.scale = kScale, p.tau = kTau;
  p.noise = c.gumbel() ? c.noise.data() : nullptr;
  p.noise_stride[0] = c.columns, p.noise_stride[1] = 1;
  p.crop = e.crop.data(), p.score = e.score.data(), p.shift = e.shift.data(), p.workspace = space;
  CHECK(cpu::azimuth_crop(p, 1) == Status::kOk);
  AzimuthCropBackwardParams d{};
  d.query = p.query, d.strips = p.strips, d.query_width = p.query_width;
  d.select = p.select, d.scale = kScale, d.tau = kTau;
  d.noise = p.noise, d.noise_stride[0] = c.columns, d.noise_stride[1] = 1;
  d.grad_crop = c.grad_crop.data(), d.grad_score = c.grad_score.data(), d.score = p.score, d.shift = p.shift;
  d.grad_query = e.grad_query.data(), d.grad_strips = e.grad_strips.data();
  d.grad_scale = c.gumbel() ? e.grad_scale.data() : nullptr;
  d.workspace = space;
  CHECK(cpu::azimuth_crop_backward(d, 1) == Status::kOk);
  return e;
}

template <typename T>
void check_crop(const Case& c, bool strided) {
  const std::string what = "crop W " + std::to_string(c.columns) + " Wq " + std::to_string(c.query_columns) +
                           " select " + std::to_string(static_cast<int>(c.select)) + (strided ? " strided" : "");
  const Answer e = on_cpu<T>(c);
  const Items<T> query(c.query, c.batch, c.channels, c.height, c.query_columns, strided);
  const Items<T> strips(c.strips, c.batch, c.channels, c.height, c.columns, strided);
  const Buffer<int64_t> width(c.width), shift(c.batch);
  const Buffer<double> scale(std::vector<double>{kScale});
  Floats by_shift(c.noise.size());
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t s = 0; s < c.columns; ++s) by_shift[s * c.batch + b] = c.noise[b * c.columns + s];
  const Buffer<float> noise(strided ? by_shift : c.noise);
  const Buffer<float> crop(static_cast<int64_t>(c.query.size())), score(c.batch);
  const Buffer<uint8_t> space(cuda::azimuth_crop_workspace(c.batch, c.columns));
  AzimuthCropParams p{};
  p.query = query.tensor, p.strips = strips.tensor, p.query_width = width.data();
  p.select = c.select, p.device_scale = scale.data(), p.tau = kTau;
  p.noise = c.gumbel() ? noise.data() : nullptr;
  p.noise_stride[0] = strided ? 1 : c.columns, p.noise_stride[1] = strided ? c.batch : 1;
  p.crop = crop.data(), p.score = score.data(), p.shift = shift.data(), p.workspace = space.data();
  Status status = cuda::azimuth_crop(p, 0, nullptr);
  std::string error = take_error();
  CHECK(status == Status::kOk && error.empty(), "%s: %s", what.c_str(), error.c_str());
  CHECK(shift.values() == e.shift, "%s: shifts", what.c_str());
  check_close(score.data(), e.score, 1e-6, what + " score");
  check_close(crop.data(), e.crop, 1e-6, what);

  const Buffer<float> grad_crop(c.grad_crop), grad_score(c.grad_score);
  const Buffer<float> grad_query(static_cast<int64_t>(c.query.size()));
  const Buffer<float> grad_strips(static_cast<int64_t>(c.strips.size()));
  const Buffer<double> grad_scale(c.gumbel() ? c.batch : 0);
  AzimuthCropBackwardParams d{};
  d.query = p.query, d.strips = p.strips, d.query_width = p.query_width;
  d.select = p.select, d.device_scale = scale.data(), d.tau = kTau;
  d.noise = p.noise, d.noise_stride[0] = p.noise_stride[0], d.noise_stride[1] = p.noise_stride[1];
  d.grad_crop = grad_crop.data(), d.grad_score = grad_score.data(), d.score = score.data(), d.shift = shift.data();
  d.grad_query = grad_query.data(), d.grad_strips = grad_strips.data();
  d.grad_scale = c.gumbel() ? grad_scale.data() : nullptr;
  d.workspace = space.data();
  status = cuda::azimuth_crop_backward(d, 0, nullptr);
  error = take_error();
  CHECK(status == Status::kOk && error.empty(), "%s: %s", what.c_str(), error.c_str());
  check_close(grad_query.data(), e.grad_query, 4e-6, what + " gradient of the query");
  check_close(grad_strips.data(), e.grad_strips, 4e-6, what + " gradient of the strips");
  if (!c.gumbel()) return;
  const Floats of_scale(e.grad_scale.begin(), e.grad_scale.end());
  const Floats found(grad_scale.data(), grad_scale.data() + c.batch);
  check_close(found.data(), of_scale, 4e-6, what + " gradient of the scale");
}

void crops() {
  constexpr int64_t kShapes[][5] = {
      {5, 2, 3, 5, 16}, {3, 4, 4, 16, 16}, {4, 1, 1, 3, 7},    {3, 5, 1, 9, 20},
      {3, 5, 2, 1, 1},  {2, 3, 2, 33, 64}, {2, 1, 400, 9, 100}};  // not into shared memory
  for (const auto& n : kShapes)
    for (const Selection select : {Selection::kCorrelation, Selection::kCosine, Selection::kGumbel}) {
      const Case c(n[0], n[1], n[2], n[3], n[4], select);
      check_crop<float>(c, false);
      check_crop<float>(c, true);
      if (n[4] != 16) continue;
      check_crop<BFloat16>(c, false);
      check_crop<Float16>(c, true);
    }
  CHECK(!cuda::crop_launch(400, 9, 100).shared && cuda::crop_launch(64, 16, 16).shared);
}

// NaN and Inf, empty queries, strips and windows, ties, noise without a distribution.
void troubles() {
  for (const Selection select : {Selection::kCorrelation, Selection::kCosine, Selection::kGumbel}) {
    Case c(12, 2, 2, 4, 7, select);
    auto strip = [&](int64_t b, int64_t k, int64_t x) -> float& { return c.strips[(b * 4 + k) * 7 + x]; };
    auto query = [&](int64_t b, int64_t k, int64_t x) -> float& { return c.query[(b * 4 + k) * 4 + x]; };
    c.width.assign(12, 4);
    query(0, 1, 2) = kNan, strip(1, 2, 3) = kInfinity;
    c.width[2] = 2, query(2, 3, 3) = kNan;  // beyond its width
    c.width[3] = 0;
    for (int64_t k = 0; k < 4; ++k)
      for (int64_t x = 0; x < 7; ++x) {
        strip(4, k, x) = 0.0f;
        if (x < 4) query(5, k, x) = 0.0f;
        strip(6, k, x) = 0.1f * static_cast<float>(k + 1);  // every shift ties
        if (x > 1) strip(7, k, x) *= 1e-4f;                 // windows that do not count
        strip(8, k, x) *= 1e30f;
      }
    for (int64_t s = 0; s < 7; ++s) c.noise[6 * 7 + s] = 0.25f;
    c.noise[8 * 7 + 1] = 0.0f;
    c.noise[9 * 7 + 3] = kNan, c.noise[10 * 7 + 3] = kInfinity;
    for (int64_t s = 0; s < 7; ++s) c.noise[11 * 7 + s] = -kInfinity;
    check_crop<float>(c, false);
  }
}

void noise() {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{1000}, int64_t{5000}})
    for (const int64_t seed : {int64_t{0}, int64_t{0x123456789abcdef}}) {
      Floats expected(static_cast<size_t>(count));
      cpu::gumbel_noise(static_cast<uint64_t>(seed), expected.data(), count, 1);
      const Buffer<float> out(count);
      const Buffer<int64_t> seeds(std::vector<int64_t>{seed});
      const Status status = cuda::gumbel_noise(seeds.data(), out.data(), count, 0, nullptr);
      const std::string error = take_error();
      CHECK(status == Status::kOk && error.empty(), "%s", error.c_str());
      check_close(out.data(), expected, 1e-6, "noise");
    }
}

}  // namespace
}  // namespace geoloc_fast

int main() {
  using namespace geoloc_fast;
  for (const simt::Order order : {simt::Order::kForward, simt::Order::kBackward, simt::Order::kRandom}) {
    simt::set_order(order, 1);
    crops();
    troubles();
    noise();
  }
  return tests::failures();
}
