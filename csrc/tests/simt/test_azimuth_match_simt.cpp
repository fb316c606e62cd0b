// The CUDA kernels of azimuth_match in the emulator, against those of the CPU.
// SPDX-License-Identifier: Apache-2.0
#include "cuda/azimuth_match_heuristics.h"
#include "tests/azimuth_case.h"
#include "tests/simt/strip_items.h"

namespace geoloc_fast {
namespace {

using namespace simt;

using tests::kScale;
using tests::kTau;

struct Case : tests::MatchCase {
  using MatchCase::MatchCase;
  std::string name() const {
    return "W " + std::to_string(columns) + " Wq " + std::to_string(query_columns) + " select " +
           std::to_string(static_cast<int>(select));
  }
};

struct Answer {
  Floats score, slope, scale_slope, grad_query, grad_strips;
  std::vector<int64_t> shift;
  double grad_scale = 0;
};

template <typename T>
Answer on_cpu(const Case& c) {
  Answer e;
  const auto pairs = static_cast<size_t>(c.batch * c.references);
  const Items<T> query(c.query, c.batch, c.channels, c.height, c.query_columns, false);
  const Items<T> strips(c.strips, c.references, c.channels, c.height, c.columns, false);
  e.score.resize(pairs), e.shift.resize(pairs);
  e.slope.resize(c.gumbel() ? pairs * static_cast<size_t>(c.columns) : 0);
  e.scale_slope.resize(c.gumbel() ? pairs : 0);
  e.grad_query.resize(c.query.size()), e.grad_strips.resize(c.strips.size());
  AzimuthMatchParams p{};
  p.query = query.tensor, p.strips = strips.tensor;
  p.query_width = c.width.data();
  p.select = c.select, p.scale = kScale, p.tau = kTau;
  c.set_noise(p);
  p.score = e.score.data(), p.shift = e.shift.data();
  p.slope = c.gumbel() ? e.slope.data() : nullptr, p.scale_slope = c.gumbel() ? e.scale_slope.data() : nullptr;
  p.plan = AzimuthPlan::kDirect;
  const Memory space(cpu::azimuth_match_workspace(c.size(c.gumbel(), false), p.plan, 1));
  p.workspace = space;
  CHECK(cpu::azimuth_match(p, 1) == Status::kOk);
  AzimuthMatchBackwardParams d{};
  d.query = p.query, d.strips = p.strips, d.query_width = p.query_width;
  d.select = p.select, d.scale = kScale, d.tau = kTau;
  d.grad_score = c.grad.data(), d.score = p.score, d.shift = p.shift, d.slope = p.slope, d.scale_slope = p.scale_slope;
  d.grad_query = e.grad_query.data(), d.grad_strips = e.grad_strips.data();
  d.grad_scale = c.gumbel() ? &e.grad_scale : nullptr;
  d.plan = c.gumbel() ? AzimuthPlan::kSpectral : AzimuthPlan::kScatter;
  const Memory more(cpu::azimuth_match_workspace(c.size(false, true), d.plan, 1));
  d.workspace = more;
  CHECK(cpu::azimuth_match_backward(d, 1) == Status::kOk);
  return e;
}

template <typename T>
void check_match(const Case& c, AzimuthPlan forward, AzimuthPlan backward, const Answer& e, bool strided) {
  const std::string what = c.name() + " plans " + std::to_string(static_cast<int>(forward)) + " " +
                           std::to_string(static_cast<int>(backward)) + (strided ? " strided" : "") + " dtype size " +
                           std::to_string(sizeof(T));
  const int64_t pairs = c.batch * c.references;
  const Items<T> query(c.query, c.batch, c.channels, c.height, c.query_columns, strided);
  const Items<T> strips(c.strips, c.references, c.channels, c.height, c.columns, strided);
  const Buffer<int64_t> width(c.width);
  const Buffer<double> scale(std::vector<double>{kScale});
  Floats by_shift(c.noise.size());  // strided: [B, W, R]
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t r = 0; r < c.references; ++r)
      for (int64_t s = 0; s < c.columns; ++s)
        by_shift[(b * c.columns + s) * c.references + r] = c.noise[(b * c.references + r) * c.columns + s];
  const Buffer<float> noise(strided ? by_shift : c.noise);
  const Buffer<float> score(pairs), slope(c.gumbel() ? pairs * c.columns : 0), scale_slope(c.gumbel() ? pairs : 0);
  const Buffer<int64_t> shift(pairs);
  AzimuthMatchParams p{};
  p.query = query.tensor, p.strips = strips.tensor;
  p.query_width = width.data();
  p.select = c.select, p.tau = kTau;
  p.device_scale = scale.data();
  p.noise = c.gumbel() ? noise.data() : nullptr;
  p.noise_stride[0] = c.references * c.columns;
  p.noise_stride[1] = strided ? 1 : c.columns, p.noise_stride[2] = strided ? c.references : 1;
  p.score = score.data(), p.shift = shift.data();
  p.slope = c.gumbel() ? slope.data() : nullptr, p.scale_slope = c.gumbel() ? scale_slope.data() : nullptr;
  p.plan = forward;
  const Buffer<uint8_t> space(cuda::azimuth_match_workspace(c.size(c.gumbel(), false), forward));
  p.workspace = space.data();
  Status status = cuda::azimuth_match(p, 0, nullptr);
  std::string error = simt::take_error();
  CHECK(status == Status::kOk && error.empty(), "%s: %s", what.c_str(), error.c_str());
  CHECK(shift.values() == e.shift, "%s: shifts", what.c_str());
  check_close(score.data(), e.score, 1e-6, what + " score");
  if (c.gumbel()) check_close(slope.data(), e.slope, 2e-6, what + " slope");

  const Buffer<float> grad(c.grad), grad_query(static_cast<int64_t>(c.query.size()));
  const Buffer<float> grad_strips(static_cast<int64_t>(c.strips.size()));
  const Buffer<double> grad_scale(1);
  AzimuthMatchBackwardParams d{};
  d.query = p.query, d.strips = p.strips, d.query_width = p.query_width;
  d.select = p.select, d.tau = kTau, d.device_scale = scale.data();
  d.grad_score = grad.data(), d.score = score.data(), d.shift = shift.data();
  d.slope = p.slope, d.scale_slope = p.scale_slope;
  d.grad_query = grad_query.data(), d.grad_strips = grad_strips.data();
  d.grad_scale = c.gumbel() ? grad_scale.data() : nullptr;
  d.plan = backward;
  const Buffer<uint8_t> more(cuda::azimuth_match_workspace(c.size(false, true), backward));
  d.workspace = more.data();
  status = cuda::azimuth_match_backward(d, 0, nullptr);
  error = simt::take_error();
  CHECK(status == Status::kOk && error.empty(), "%s: %s", what.c_str(), error.c_str());
  check_close(grad_query.data(), e.grad_query, 4e-6, what + " gradient of the query");
  check_close(grad_strips.data(), e.grad_strips, 4e-6, what + " gradient of the strips");
  if (c.gumbel()) {
    const float found = static_cast<float>(grad_scale[0]);
    check_close(&found, Floats{static_cast<float>(e.grad_scale)}, 4e-6, what + " gradient of the scale");
  }
}

template <typename T>
void check_plans(const Case& c, bool strided) {
  const Answer e = on_cpu<T>(c);
  if (cuda::has_transform(c.columns)) {
    check_match<T>(c, AzimuthPlan::kSpectral, AzimuthPlan::kSpectral, e, strided);
    if (c.columns > 16) return;
  }
  check_match<T>(c, AzimuthPlan::kDirect, AzimuthPlan::kScatter, e, strided);
}

void shapes(bool all) {
  constexpr int64_t kShapes[][6] = {
      {5, 35, 2, 3, 5, 16}, {34, 7, 4, 2, 16, 16}, {7, 3, 1, 1, 3, 7}, {3, 40, 17, 1, 9, 20}, {4, 6, 5, 2, 1, 1},
      {2, 5, 3, 2, 33, 64}, {9, 18, 150, 1, 3, 8}, {3, 5, 2, 3, 4, 4}, {2, 3, 3, 1, 20, 32},  {3, 20, 2, 1, 9, 100}};
  for (const auto& n : kShapes)
    for (const Selection select : {Selection::kCorrelation, Selection::kCosine, Selection::kGumbel}) {
      const Case c(n[0], n[1], n[2], n[3], n[4], n[5], select);
      check_plans<float>(c, false);
      if (!all) continue;
      check_plans<float>(c, true);
      if (n[5] != 16) continue;
      check_plans<BFloat16>(c, false);
      check_plans<Float16>(c, true);
    }
}

// NaN and Inf, empty queries and strips, exact and near ties, thin windows, noise without a distribution.
void troubles() {
  for (const int64_t columns : {16, 7})
    for (const Selection select : {Selection::kCorrelation, Selection::kCosine, Selection::kGumbel}) {
      Case c(9, 11, 2, 2, 4, columns, select);
      const int64_t item = 4 * columns;
      auto strip = [&](int64_t r, int64_t k, int64_t x) -> float& { return c.strips[r * item + k * columns + x]; };
      c.query[2 * 16 + 5] = kNan;
      strip(1, 2, 3) = kInfinity;
      c.width[5] = 2, c.query[5 * 16 + 3] = kNan;  // beyond its width
      c.width[6] = 0;
      for (int64_t k = 0; k < 4; ++k)
        for (int64_t x = 0; x < columns; ++x) {
          strip(2, k, x) = 0.0f;                          // empty
          strip(3, k, x) = 0.1f * static_cast<float>(k);  // every shift ties
          strip(4, k, x) = strip(4, k, x % 3);            // some do
          if (x > 1) strip(5, k, x) *= 1e-3f;             // thin windows, on either side
          if (x > 1) strip(6, k, x) *= 1e-4f;             // of what counts
          if (x >= 3) strip(7, k, x) = strip(7, k, x - 3) * (1.0f + 1e-7f * static_cast<float>((k + x) % 3));
        }
      for (int64_t x = 0; x < 16; ++x) c.query[7 * 16 + x] = 0.0f;
      for (int64_t x = 0; x < 16; ++x) c.query[8 * 16 + x] *= 1e-30f;
      auto noise = [&](int64_t b, int64_t r, int64_t s) -> float& { return c.noise[(b * 11 + r) * columns + s]; };
      for (int64_t b = 0; b < 9; ++b)
        for (int64_t s = 0; s < columns; ++s) noise(b, 3, s) = 0.5f, noise(b, 7, s) = 0.25f;
      noise(0, 8, 3) = kNan, noise(0, 9, 2) = kInfinity;
      for (int64_t s = 0; s < columns; ++s) noise(0, 10, s) = -kInfinity;
      for (int64_t s = 0; s < 5; ++s) noise(1, 10, s) = -kInfinity;
      c.grad[0] = 0;
      check_plans<float>(c, false);
    }
}

// Launch choices for every width and for items small and large: no GPU needed, nor the emulator.
void launches() {
  for (int64_t columns = 1; columns <= cuda::kMaxStripColumns; columns += columns < 130 ? 1 : 977)
    for (const int64_t values : {int64_t{1}, int64_t{64}, int64_t{1024}})
      for (const int64_t items : {int64_t{1}, int64_t{128}, int64_t{5000}}) {
        AzimuthMatchSize size{items, items, values, (columns + 2) / 3, columns, true, Selection::kGumbel, true, false};
        const AzimuthPlan plan = cuda::azimuth_match_plan(size);
        const cuda::MatchLaunch how = cuda::match_launch(size, plan);
        CHECK(how.shared_bytes <= cuda::kSharedLimit && how.warps >= 1 && how.warps <= cuda::kMaxWarps);
        CHECK(how.terms % how.depth == 0 && how.blocks >= 1 && how.blocks <= how.tiles);
        CHECK(!how.overlay || how.slots == how.warps);
        CHECK(plan != AzimuthPlan::kSpectral || !how.global);
        size.slope = false, size.backward = true;
        for (const bool of_query : {false, true}) {
          const cuda::GradientLaunch sums = cuda::gradient_launch(size, of_query);
          CHECK(sums.terms_per_split % cuda::kTermAlign == 0 && sums.terms % cuda::kTermAlign == 0);
          CHECK(sums.splits * sums.terms_per_split >= sums.terms);
          CHECK((sums.splits - 1) * sums.terms_per_split < sums.terms);
        }
      }
  // Training sizes, beside the slopes and the noise of 64 MB each.
  AzimuthMatchSize size{1024, 1024, 64, 16, 16, false, Selection::kGumbel, true, false};
  CHECK(cuda::azimuth_match_plan(size) == AzimuthPlan::kSpectral &&
        cuda::match_launch(size, AzimuthPlan::kSpectral).overlay);
  CHECK(cuda::azimuth_match_workspace(size, AzimuthPlan::kSpectral) < 16000000);
  size.slope = false, size.backward = true;
  CHECK(cuda::azimuth_match_plan(size) == AzimuthPlan::kSpectral);
  CHECK(cuda::azimuth_match_workspace(size, AzimuthPlan::kSpectral) < 128000000);
}

}  // namespace
}  // namespace geoloc_fast

int main() {
  using namespace geoloc_fast;
  launches();
  for (const simt::Order order : {simt::Order::kForward, simt::Order::kBackward, simt::Order::kRandom}) {
    simt::set_order(order, 1);
    shapes(order == simt::Order::kForward);
    troubles();
  }
  return tests::failures();
}
