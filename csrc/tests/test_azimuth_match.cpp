// azimuth_match, azimuth_crop and gumbel_noise with every instruction set and plan, against sums in float64 written out
// here. Built with sanitizers: every buffer has exactly the size the functions ask for.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa.h"
#include "geoloc_fast/azimuth_crop.h"
#include "geoloc_fast/azimuth_match.h"
#include "geoloc_fast/gumbel_noise.h"
#include "tests/azimuth_case.h"
#include "tests/check.h"

namespace geoloc_fast::tests {
namespace {

using Doubles = std::vector<double>;

StripTensor contiguous(const Floats& values, int64_t items, int64_t channels, int64_t height, int64_t columns) {
  return {values.data(),
          DType::kFloat32,
          items,
          channels,
          height,
          columns,
          {channels * height * columns, height * columns, columns, 1}};
}

struct Case : MatchCase {
  using MatchCase::MatchCase;
  double q(int64_t b, int64_t k, int64_t x) const { return query[(b * values() + k) * query_columns + x]; }
  double s(int64_t r, int64_t k, int64_t x) const { return strips[(r * values() + k) * columns + x % columns]; }
  double window_product(int64_t r, int64_t a, int64_t b, int64_t w) const {
    double sum = 0;
    for (int64_t k = 0; k < values(); ++k)
      for (int64_t x = 0; x < w; ++x) sum += s(r, k, a + x) * s(r, k, b + x);
    return sum;
  }
};

struct Expected {
  Doubles score, slope, grad_query, grad_strips;
  std::vector<int64_t> shift;
  double grad_scale = 0;
};

// Formulas of azimuth_match.h, pair by pair.
Expected expected_match(const Case& c) {
  Expected e;
  const int64_t columns = c.columns, values = c.values();
  const auto pairs = static_cast<size_t>(c.batch * c.references);
  e.score.resize(pairs), e.shift.resize(pairs), e.slope.resize(pairs * static_cast<size_t>(columns));
  e.grad_query.resize(c.query.size()), e.grad_strips.resize(c.strips.size());
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t r = 0; r < c.references; ++r) {
      const int64_t w = c.width[b], pair = b * c.references + r;
      double query_energy = 0;
      for (int64_t k = 0; k < values; ++k)
        for (int64_t x = 0; x < w; ++x) query_energy += c.q(b, k, x) * c.q(b, k, x);
      const double query_norm = std::sqrt(query_energy);
      Doubles correlation(columns), logit(columns), share(columns);
      int64_t best = 0;
      Doubles compared(columns);
      for (int64_t s = 0; s < columns; ++s) {
        for (int64_t k = 0; k < values; ++k)
          for (int64_t x = 0; x < w; ++x) correlation[s] += c.q(b, k, x) * c.s(r, k, s + x);
        logit[s] = (kScale * correlation[s] + c.noise[pair * columns + s]) / kTau;
        compared[s] = c.select == Selection::kGumbel   ? logit[s]
                      : c.select == Selection::kCosine ? correlation[s] / std::sqrt(c.window_product(r, s, s, w))
                                                       : correlation[s];
        if (compared[s] > compared[best]) best = s;
      }
      const double energy = c.window_product(r, best, best, w), norm = std::sqrt(energy);
      const double score = correlation[best] / (query_norm * norm), g = c.grad[pair];
      e.score[pair] = score, e.shift[pair] = best;
      Doubles weight(columns);
      weight[best] = g / (query_norm * norm);
      if (c.select == Selection::kGumbel) {
        double total = 0, mean = 0;
        Doubles y(columns);
        for (int64_t s = 0; s < columns; ++s) total += share[s] = std::exp(logit[s] - logit[best]);
        for (int64_t s = 0; s < columns; ++s) {
          y[s] = correlation[s] / (query_norm * norm) - score * c.window_product(r, s, best, w) / energy;
          mean += share[s] / total * y[s];
        }
        for (int64_t s = 0; s < columns; ++s) {
          const double slope = share[s] / total * (y[s] - mean);
          e.slope[(b * columns + s) * c.references + r] = slope;
          weight[s] += g * kScale / kTau * slope;
          e.grad_scale += g * slope * correlation[s] / kTau;
        }
      }
      for (int64_t k = 0; k < values; ++k)
        for (int64_t x = 0; x < w; ++x) {
          double& of_query = e.grad_query[(b * values + k) * c.query_columns + x];
          of_query -= c.q(b, k, x) * g * score / query_energy;
          for (int64_t s = 0; s < columns; ++s) {
            of_query += weight[s] * c.s(r, k, s + x);
            e.grad_strips[(r * values + k) * columns + (s + x) % columns] += weight[s] * c.q(b, k, x);
          }
          e.grad_strips[(r * values + k) * columns + (best + x) % columns] -= c.s(r, k, best + x) * g * score / energy;
        }
    }
  return e;
}

template <typename A>
void check_close(const A& actual, const Doubles& expected, const std::string& what) {
  CHECK(actual.size() == expected.size(), "%s: %zu values", what.c_str(), actual.size());
  double largest = 1;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  double worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double off = std::abs(static_cast<double>(actual[i]) - expected[i]);
    worst = off <= worst ? worst : off;  // NaN counts
  }
  CHECK(worst <= 4e-6 * largest, "%s: off by %g of %g", what.c_str(), worst, largest);
}

void test_match(const Case& c, AzimuthPlan forward, AzimuthPlan backward, const Expected& e, int threads,
                const std::string& what) {
  const bool gumbel = c.select == Selection::kGumbel;
  const auto pairs = static_cast<size_t>(c.batch * c.references);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  Floats score(pairs, nan), slope(gumbel ? pairs * static_cast<size_t>(c.columns) : 0, nan);
  Floats scale_slope(gumbel ? pairs : 0, nan);
  std::vector<int64_t> shift(pairs, -1);
  AzimuthMatchParams p{};
  p.query = contiguous(c.query, c.batch, c.channels, c.height, c.query_columns);
  p.strips = contiguous(c.strips, c.references, c.channels, c.height, c.columns);
  p.query_width = c.width.data();
  p.select = c.select;
  p.scale = kScale, p.tau = kTau;
  c.set_noise(p);
  p.score = score.data(), p.shift = shift.data();
  p.slope = gumbel ? slope.data() : nullptr, p.scale_slope = gumbel ? scale_slope.data() : nullptr;
  p.plan = forward;
  const Memory workspace(cpu::azimuth_match_workspace(c.size(gumbel, false), forward, threads));
  p.workspace = workspace;
  CHECK(cpu::azimuth_match(p, threads) == Status::kOk);
  CHECK(shift == e.shift, "%s", what.c_str());
  check_close(score, e.score, what + " score");
  if (gumbel) check_close(slope, e.slope, what + " slope");

  Floats grad_query(c.query.size(), nan), grad_strips(c.strips.size(), nan);
  double grad_scale = 0;
  AzimuthMatchBackwardParams d{};
  d.query = p.query, d.strips = p.strips, d.query_width = p.query_width;
  d.select = p.select, d.scale = kScale, d.tau = kTau;
  d.grad_score = c.grad.data(), d.score = score.data(), d.shift = shift.data();
  d.slope = p.slope, d.scale_slope = p.scale_slope;
  d.grad_query = grad_query.data(), d.grad_strips = grad_strips.data();
  d.grad_scale = gumbel ? &grad_scale : nullptr;
  d.plan = backward;
  const Memory more(cpu::azimuth_match_workspace(c.size(false, true), backward, threads));
  d.workspace = more;
  CHECK(cpu::azimuth_match_backward(d, threads) == Status::kOk);
  check_close(grad_query, e.grad_query, what + " gradient of the query");
  check_close(grad_strips, e.grad_strips, what + " gradient of the strips");
  if (gumbel) check_close(Doubles{grad_scale}, Doubles{e.grad_scale}, what + " gradient of the scale");
}

// Pairs (b, b): score and shift are azimuth_match's, and with no weight on the crop so are the gradients.
void test_crop(const Case& c, int threads, const std::string& what) {
  Case paired = c;
  paired.references = c.batch;
  paired.strips.resize(static_cast<size_t>(c.batch * c.values() * c.columns));
  const bool gumbel = c.select == Selection::kGumbel;
  Floats noise;
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t s = 0; s < c.columns; ++s) noise.push_back(paired.noise[(b * c.batch + b) * c.columns + s]);
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t r = 0; r < c.batch; ++r)
      if (b != r) paired.grad[b * c.batch + r] = 0;
  const Expected e = expected_match(paired);

  const float nan = std::numeric_limits<float>::quiet_NaN();
  Floats crop(c.query.size(), nan), score(static_cast<size_t>(c.batch), nan);
  std::vector<int64_t> shift(static_cast<size_t>(c.batch), -1);
  const Memory workspace(cpu::azimuth_crop_workspace(c.values(), c.query_columns, c.columns, threads));
  AzimuthCropParams p{};
  p.query = contiguous(paired.query, c.batch, c.channels, c.height, c.query_columns);
  p.strips = contiguous(paired.strips, c.batch, c.channels, c.height, c.columns);
  p.query_width = paired.width.data();
  p.select = c.select, p.scale = kScale, p.tau = kTau;
  p.noise = gumbel ? noise.data() : nullptr;
  p.noise_stride[0] = c.columns, p.noise_stride[1] = 1;
  p.crop = crop.data(), p.score = score.data(), p.shift = shift.data();
  p.workspace = workspace;
  CHECK(cpu::azimuth_crop(p, threads) == Status::kOk);
  Doubles expected_crop(crop.size()), expected_score;
  Floats grad_score, grad_crop(crop.size(), 0.0f);
  for (int64_t b = 0; b < c.batch; ++b) {
    const int64_t at = e.shift[b * c.batch + b];
    CHECK(shift[b] == at, "%s crop", what.c_str());
    expected_score.push_back(e.score[b * c.batch + b]);
    grad_score.push_back(paired.grad[b * c.batch + b]);
    const double norm = std::sqrt(paired.window_product(b, at, at, paired.width[b]));
    for (int64_t k = 0; k < c.values(); ++k)
      for (int64_t x = 0; x < paired.width[b]; ++x)
        expected_crop[(b * c.values() + k) * c.query_columns + x] = paired.s(b, k, at + x) / norm;
  }
  check_close(score, expected_score, what + " crop's score");
  check_close(crop, expected_crop, what + " crop");

  Floats grad_query(paired.query.size(), nan), grad_strips(paired.strips.size(), nan);
  Doubles grad_scale(static_cast<size_t>(c.batch));
  AzimuthCropBackwardParams d{};
  d.query = p.query, d.strips = p.strips, d.query_width = p.query_width;
  d.select = p.select, d.scale = kScale, d.tau = kTau;
  d.noise = p.noise, d.noise_stride[0] = c.columns, d.noise_stride[1] = 1;
  d.grad_crop = grad_crop.data(), d.grad_score = grad_score.data();
  d.score = score.data(), d.shift = shift.data();
  d.grad_query = grad_query.data(), d.grad_strips = grad_strips.data();
  d.grad_scale = gumbel ? grad_scale.data() : nullptr;
  d.workspace = workspace;
  CHECK(cpu::azimuth_crop_backward(d, threads) == Status::kOk);
  check_close(grad_query, e.grad_query, what + " crop's gradient of the query");
  check_close(grad_strips, e.grad_strips, what + " crop's gradient of the strips");
  double sum = 0;
  for (const double value : grad_scale) sum += value;
  if (gumbel) check_close(Doubles{sum}, Doubles{e.grad_scale}, what + " crop's gradient of the scale");
}

void test_noise(const std::string& what) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{64}, int64_t{1000}}) {
    Floats noise(static_cast<size_t>(count), std::numeric_limits<float>::quiet_NaN());
    cpu::gumbel_noise(0, noise.data(), count, 2);
    for (const float value : noise) CHECK(value > -3 && value < 17, "%s: %g", what.c_str(), static_cast<double>(value));
    // Philox's first answer is 0x6627e8d5.
    const double u = (static_cast<double>(0x6627e8d5u >> 9) + 0.5) / 8388608.0;
    if (count > 0) CHECK(std::abs(static_cast<double>(noise[0]) + std::log(-std::log(u))) < 1e-6, "%s", what.c_str());
  }
}

void test_all() {
  constexpr int64_t kShapes[][6] = {{5, 35, 2, 3, 5, 16},   {7, 16, 4, 4, 16, 16}, {13, 3, 1, 1, 3, 7},
                                    {3, 40, 17, 1, 20, 20}, {4, 6, 5, 2, 1, 1},    {2, 5, 3, 2, 33, 64},
                                    {30, 70, 3, 1, 2, 2},   {6, 9, 70, 1, 3, 8}};
  for (const auto& n : kShapes)
    for (const Selection select : {Selection::kCorrelation, Selection::kCosine, Selection::kGumbel}) {
      const Case c(n[0], std::max(n[0], n[1]), n[2], n[3], n[4], n[5], select);
      const Expected e = expected_match(c);
      for_each_isa([&](const char* isa) {
        for (const int threads : {1, 3}) {
          const std::string what =
              std::string(isa) + " select " + std::to_string(static_cast<int>(select)) + " W " + std::to_string(n[5]);
          const bool gumbel = select == Selection::kGumbel;
          test_match(c, AzimuthPlan::kDirect, gumbel ? AzimuthPlan::kSpectral : AzimuthPlan::kScatter, e, threads,
                     what + " direct");
          test_match(c, AzimuthPlan::kSpectral, AzimuthPlan::kSpectral, e, threads, what + " spectral");
          test_crop(c, threads, what);
        }
      });
    }
  for_each_isa(test_noise);
}

void test_callers_at_once() {
  const Case c(9, 40, 3, 2, 5, 16, Selection::kGumbel);
  const Expected e = expected_match(c);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int n = 0; n < 10; ++n)
        test_match(c, AzimuthPlan::kSpectral, AzimuthPlan::kSpectral, e, 2, "callers at once");
    });
  for (std::thread& caller : callers) caller.join();
}

void test_refusals() {
  const Case c(2, 3, 1, 1, 3, 4, Selection::kCorrelation);
  AzimuthMatchParams p{};
  p.query = contiguous(c.query, 2, 1, 1, 3);
  p.strips = contiguous(c.strips, 3, 1, 1, 4);
  p.query.dtype = DType::kUInt8;
  CHECK(cpu::azimuth_match(p, 1) == Status::kBadDType);
  p.query.dtype = DType::kFloat32;
  p.query.columns = 5;
  CHECK(cpu::azimuth_match(p, 1) == Status::kBadSize);
}

}  // namespace
}  // namespace geoloc_fast::tests

int main() {
  geoloc_fast::tests::test_all();
  geoloc_fast::tests::test_callers_at_once();
  geoloc_fast::tests::test_refusals();
  return geoloc_fast::tests::failures();
}
