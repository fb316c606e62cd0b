// The search on the GPU, in the emulator, against that of the CPU: the same scores, rows and shifts, bit for bit.
// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "cuda/strip_topk_heuristics.h"
#include "geoloc_fast/strip_topk.h"
#include "tests/simt/bank.h"

namespace geoloc_fast {
namespace {

using simt::Buffer;
using simt::Memory;

struct Case {
  int64_t count, values, columns, batch;
  bool bf16;
  float spread = 1.0f;  // 0: all strips the same
  int multiprocessors = 2;
  bool widths = true;  // of every kind; else all padded_width
  int64_t k = 7;
  bool masked = false;  // a third of the columns of most strips are zeros
  int group = 0;        // rows of a group: 1 to this many, and now and then 40; 0: no groups
  bool dot = false;
};

// Ascending, with gaps between some.
std::vector<int64_t> groups_of(int64_t count, int largest) {
  std::mt19937 generator(7);
  std::vector<int64_t> group;
  for (int64_t id = -3; static_cast<int64_t>(group.size()) < count; id += 1 + id % 2 * id % 2) {
    const auto rows = generator() % 9 == 0 ? 40 : 1 + static_cast<int64_t>(generator()) % largest;
    for (int64_t i = 0; i < rows && static_cast<int64_t>(group.size()) < count; ++i) group.push_back(id);
  }
  return group;
}

std::string g_plans;

void search(const Case& c) {
  const int64_t one = c.values * c.columns, padded = (2 * c.columns + 2) / 3;
  std::vector<float> strips = simt::random_values(c.count * one, 1);
  for (int64_t i = one; i < c.count * one; ++i) strips[i] = strips[i % one] * (1 - c.spread) + strips[i] * c.spread;
  if (c.count > 20 && c.spread == 1.0f) {
    strips[17 * one] = NAN;
    strips[5 * one] = INFINITY;
    for (int64_t i = 0; i < one; ++i) strips[9 * one + i] = 0.0f, strips[10 * one + i] *= 1e-20f;
    // Nearly all its energy in one column: windows on the brink.
    for (int64_t i = 0; i < one; ++i)
      if (i % c.columns != 0) strips[12 * one + i] *= 1e-3f;
  }
  if (c.masked)
    for (int64_t r = 0; r < c.count; ++r)
      for (int64_t i = 0; i < one; ++i)
        if (r % 4 != 0 && (i + 5 * r) % c.columns < (c.columns + 2) / 3) strips[r * one + i] = 0.0f;
  const simt::Bank bank(strips, c.count, c.values, c.columns, c.bf16);
  std::vector<float> query = simt::random_values(c.batch * c.values * padded, 2);
  std::vector<int64_t> width;
  for (int64_t b = 0; b < c.batch; ++b) width.push_back(c.widths ? 1 + b % padded : padded);
  if (c.batch > 2) query[c.values * padded] = NAN;
  if (c.batch > 3)
    for (int64_t i = 0; i < c.values * padded; ++i) query[3 * c.values * padded + i] = 0.0f;
  const std::unique_ptr<bool[]> alive_values(new bool[c.count]);
  for (int64_t r = 0; r < c.count; ++r) alive_values[r] = r % 11 != 3;
  const Buffer<uint8_t> alive(std::vector<uint8_t>(alive_values.get(), alive_values.get() + c.count));
  const std::vector<int64_t> group = groups_of(c.count, c.group > 0 ? c.group : 1);
  const Buffer<int64_t> device_group(group);
  if (c.dot)  // of every size, and one whose square is no float64 to reckon with
    for (int64_t i = 0; i < static_cast<int64_t>(query.size()); ++i)
      query[i] *= i / (c.values * padded) % 5 == 4 ? 1e-34f : static_cast<float>(1 + i / (c.values * padded));
  const Buffer<float> device_query(query);
  const Buffer<int64_t> device_width(width);
  for (const bool cosine : {false, true}) {
    StripTopkParams p{};
    p.bank = bank.view, p.query = query.data(), p.width = c.widths ? width.data() : nullptr;
    p.batch = c.batch, p.padded_width = padded, p.k = c.k, p.cosine = cosine, p.circle = bank.circle.data();
    p.alive = cosine ? alive_values.get() : nullptr;
    p.dot = c.dot, p.group = c.group > 0 ? group.data() : nullptr;
    std::vector<float> score(static_cast<size_t>(c.batch * c.k));
    std::vector<int64_t> index(score.size()), shift(score.size());
    const Memory host(cpu::strip_topk_workspace(p, 1));
    p.score = score.data(), p.index = index.data(), p.shift = shift.data(), p.workspace = host;
    char plan[kMaxPlanName];
    CHECK(cpu::strip_topk(p, 1, plan) == Status::kOk);

    const Buffer<float> found_score(c.batch * c.k);
    const Buffer<int64_t> found_index(c.batch * c.k), found_shift(c.batch * c.k);
    p.query = device_query.data(), p.width = c.widths ? device_width.data() : nullptr;
    p.alive = cosine ? reinterpret_cast<const bool*>(alive.data()) : nullptr;
    p.group = c.group > 0 ? device_group.data() : nullptr;
    p.score = found_score.data(), p.index = found_index.data(), p.shift = found_shift.data();
    const cuda::DeviceLimits limits{c.multiprocessors, simt::kMaxShared};
    const Buffer<double> space(cuda::strip_topk_workspace(p, limits) / 8);
    p.workspace = space.data();
    const Status status = cuda::strip_topk(p, limits, 0, nullptr, plan);
    const std::string error = simt::take_error();
    const std::string name = std::string(plan) + " R " + std::to_string(c.count) + " K " + std::to_string(c.values) +
                             " W " + std::to_string(c.columns) + " B " + std::to_string(c.batch) + " k " +
                             std::to_string(c.k) + (cosine ? " cosine" : "") + (c.dot ? " dot" : "") +
                             (c.group > 0 ? " groups" : "");
    CHECK(status == Status::kOk && error.empty(), "%s: %s", name.c_str(), error.c_str());
    if (g_plans.find(plan) == std::string::npos) g_plans += std::string(" ") + plan;
    for (int64_t i = 0; i < c.batch * c.k; ++i)
      if (!(found_score[i] == score[i] && found_index[i] == index[i] && found_shift[i] == shift[i])) {
        CHECK(false, "%s: query %ld, place %ld: row %ld shift %ld score %.9g, not row %ld shift %ld score %.9g",
              name.c_str(), static_cast<long>(i / c.k), static_cast<long>(i % c.k), static_cast<long>(found_index[i]),
              static_cast<long>(found_shift[i]), static_cast<double>(found_score[i]), static_cast<long>(index[i]),
              static_cast<long>(shift[i]), static_cast<double>(score[i]));
        break;
      }
  }
}

void all_forms() {
  for (const bool bf16 : {true, false}) {
    search({200, 18, 16, 11, bf16});                    // several widths, lists that run full
    search({33, 16, 16, 1, bf16});                      // one query
    search({400, 3, 16, 5, bf16, 0.0f, 1, false, 3});   // all strips the same
    search({400, 3, 16, 9, bf16, 1e-4f, 1, false, 3});  // nearly
    search({60, 70, 1, 3, bf16});
    search({300, 40, 1, 70, bf16, 1.0f, 1, true, 2});
    search({20, 5, 16, 2, bf16, 1.0f, 2, true, 30});  // k beyond the bank
    search({90, bf16 ? 63 : 32, 16, 9, bf16});        // the words of a plane that are written out
    search({0, 6, 16, 3, bf16});
    search({70, 5, 64, 11, bf16});
    search({41, 18, 64, 1, bf16, 1.0f, 3, false});
    search({100, 3, 64, 20, bf16, 1.0f, 2, false, 5, true});
    search({40, 3, 16, 9, bf16, 1.0f, 2, true, 5, true});
  }
  search({37, 64, 64, 9, true, 1.0f, 1, false, 3});
  search({60, 64, 16, 1, true, 1.0f, 1, false, 3, true});
}

void dots_and_groups() {
  Case c{300, 18, 16, 11, true};
  c.multiprocessors = 1;
  for (const int group : {0, 3, 30})
    for (const bool dot : {false, true})
      if (group > 0 || dot) {
        c.group = group, c.dot = dot;
        for (const int64_t columns : {1, 16, 64}) {
          c.columns = columns, c.values = columns == 64 ? 4 : 18, c.batch = columns == 64 ? 6 : 11;
          c.bf16 = columns != 16 || group == 30;
          search(c);
        }
      }
  search({400, 3, 16, 5, true, 0.0f, 1, false, 3, false, 7});          // all strips the same
  search({400, 3, 16, 9, false, 1e-4f, 1, false, 3, false, 7, true});  // nearly
  search({40, 3, 16, 2, true, 1.0f, 2, true, 30, false, 4});           // k beyond the groups
}

// Many pairs are scored here, which takes long: in one order only.
void near_ties() {
  search({700, 1, 64, 1, true, 0.0f, 1, false, 3});
  search({700, 1, 64, 1, false, 1e-4f, 1, false, 3});
  search({1030, 1, 64, 1, true, 1.0f, 2, false, 1024});
}

// Lanes of one half of a warp, at any line of a bank's block: no two want different words of one bank.
void banks() {
  for (int line = 0; line < 8; ++line)
    for (int half = 0; half < 2; ++half) {
      uint32_t taken = 0;
      for (int lane = 16 * half; lane < 16 * (half + 1); ++lane)
        taken |= 3u << cuda::in_ring((line + lane % 4) * 64 + lane / 4 * 8) / 4 % 32;
      CHECK(taken == 0xffffffffu, "line %d: banks %08x", line, taken);
    }
}

void plans() {
  using namespace cuda;
  StripTopkParams p{};
  auto plan_of = [&](int64_t count, int64_t values, int64_t columns, bool bf16, int64_t batch, int64_t k) {
    p.bank = strip_bank_view(nullptr, count, values, columns, bf16);
    p.batch = batch, p.k = k, p.padded_width = columns;
    const TopkPlan plan = strip_topk_plan(p, {132, 227 << 10});
    CHECK(plan.shared <= 227 << 10 && plan.shared > 0);
    CHECK(plan.grid_x >= 1 && plan.grid_x <= 0x7fffffff && plan.grid_y >= 1 && plan.grid_y <= 65535);
    CHECK(
        plan.slots >= 1 &&
        (plan.slots == 1 || plan.tiles * kTileQueries * plan.slots * plan.list * int64_t{sizeof(Kept)} <= kListBytes));
    return plan;
  };
  TopkPlan plan = plan_of(1 << 20, 64, 16, true, 64, 10);
  CHECK(plan.form == TopkForm::kSpectral && plan.tiles_across == 8 && plan.blocks_deep == 1 && plan.grid_x == 132);
  CHECK(strip_topk_plan(p, {108, 163 << 10}).form == TopkForm::kSpectral);
  CHECK(strip_topk_plan(p, {108, 163 << 10}).shared <= 163 << 10);
  plan = plan_of(4 << 20, 64, 16, true, 1, 10);
  CHECK(plan.form == TopkForm::kSpectral && plan.tiles_across == 1 && plan.blocks_deep == 8);
  plan = plan_of(4 << 20, 64, 16, false, 1, 10);
  CHECK(plan.form == TopkForm::kSpectral && plan.blocks_deep >= 2);
  plan = plan_of(1 << 20, 1024, 1, true, 1000, 10);
  CHECK(plan.form == TopkForm::kFlat && plan.tiles_a_warp == 8);
  plan = plan_of(1 << 20, 512, 1, true, 1, 10);
  CHECK(plan.form == TopkForm::kFlat && plan.tiles_a_warp == 1 && plan.blocks_deep == 8);
  plan = plan_of(250000, 64, 64, true, 64, 10);
  CHECK(plan.form == TopkForm::kSpectral && plan.tiles_across == 2 && plan.blocks_deep == 2 && plan.warps == 8);
  CHECK(plan.grid_y == 4 && plan.grid_x == 33 && plan.slots == 33 * 4);  // one pass over the bank
  plan = strip_topk_plan(p, {108, 163 << 10});
  CHECK(plan.form == TopkForm::kSpectral && plan.warps == 4 && plan.shared <= 163 << 10);
  plan = plan_of(250000, 64, 64, true, 1, 10);
  CHECK(plan.form == TopkForm::kSpectral && plan.tiles_across == 1 && plan.blocks_deep == 4 && plan.grid_x == 132);
  plan = plan_of(250000, 64, 64, false, 64, 10);
  CHECK(plan.form == TopkForm::kSpectral && plan.tiles_across == 1 && plan.blocks_deep == 1 && plan.warps == 2);
  plan = plan_of(1000, 1024 * 3, 1, true, 64, 10);
  CHECK(plan.form == TopkForm::kFlat && plan.tiles_a_warp == 1);  // eight tiles would not fit
  const DeviceLimits limits{132, 227 << 10};
  for (const int64_t columns : {1, 16, 64}) {
    CHECK(strip_topk_fits(strip_bank_view(nullptr, 9, 64, columns, true), limits));
    CHECK(strip_topk_fits(strip_bank_view(nullptr, 9, 64, columns, false), limits));
  }
  CHECK(!strip_topk_fits(strip_bank_view(nullptr, 9, 64, 32, true), limits));
  CHECK(!strip_topk_fits(strip_bank_view(nullptr, 9, 1 << 16, 16, true), limits));  // beyond any shared memory
  plan_of(int64_t{1} << 40, 64, 16, true, 1 << 20, 1000);
  CHECK(plan_of(1 << 20, 64, 16, true, 64, 10).epsilon < 1e-4f);
  CHECK(plan_of(1 << 20, 64, 16, false, 64, 10).epsilon > 0x1p-10f);
}

}  // namespace
}  // namespace geoloc_fast

// The order of the threads as the argument names it; all three without one.
int main(int arguments, char** argument) {
  using namespace geoloc_fast;
  plans();
  banks();
  const std::string only = arguments > 1 ? argument[1] : "";
  const std::pair<const char*, simt::Order> orders[] = {
      {"forward", simt::Order::kForward}, {"backward", simt::Order::kBackward}, {"random", simt::Order::kRandom}};
  bool ran = false;
  for (const auto& [name, order] : orders) {
    if (!only.empty() && only != name) continue;
    ran = true;
    simt::set_order(order, 3);
    all_forms();
    dots_and_groups();
    if (tests::failure_count() > 0) break;  // a mutant has shown itself
    if (order == simt::Order::kRandom) near_ties();
  }
  CHECK(ran, "no order is called %s", only.c_str());
  std::printf("ran:%s\n", g_plans.c_str());
  return tests::failures();
}
