// A bank searched with every instruction set, against scoring every pair. Built with sanitizers: every buffer has
// exactly the size the functions ask for.
// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa.h"
#include "cpu/strip_topk_plan.h"
#include "geoloc_fast/strip_score.h"
#include "geoloc_fast/strip_topk.h"
#include "tests/check.h"
#include "tests/values.h"

namespace geoloc_fast::tests {
namespace {

struct Bank {
  StripBankView view;
  std::vector<double> circle;
  Memory blocks;
};

Bank make_bank(const std::vector<float>& strips, int64_t count, int64_t values, int64_t columns, bool bf16) {
  StripBankView view = strip_bank_view(nullptr, count, values, columns, bf16);
  Bank bank{view, circle_of(columns), Memory((count + kStripLanes - 1) / kStripLanes * view.block_bytes)};
  bank.view.blocks = bank.blocks.data.get();
  const Memory workspace(cpu::strip_pack_workspace(columns, 2));
  CHECK(cpu::strip_pack(bank.view, bank.blocks.data.get(), strips.data(), bank.circle.data(), workspace, 2) ==
        Status::kOk);
  return bank;
}

struct Answer {
  std::vector<float> score;
  std::vector<int64_t> index, shift;
  std::string plan;
  bool operator==(const Answer& other) const {
    return score == other.score && index == other.index && shift == other.shift;
  }
};

struct Query {
  std::vector<float> values;
  std::vector<int64_t> width;
  int64_t batch, padded_width;
};

// What decides, and which rows are one place.
struct How {
  bool cosine = false, dot = false;
  std::vector<int64_t> group = {};
};

Answer search(const Bank& bank, const Query& query, int64_t k, const How& how, int threads) {
  StripTopkParams p{};
  p.bank = bank.view, p.query = query.values.data(), p.width = query.width.data();
  p.batch = query.batch, p.padded_width = query.padded_width, p.k = k, p.cosine = how.cosine;
  p.dot = how.dot, p.group = how.group.empty() ? nullptr : how.group.data(), p.circle = bank.circle.data();
  Answer answer{std::vector<float>(query.batch * k, NAN), std::vector<int64_t>(query.batch * k, -9),
                std::vector<int64_t>(query.batch * k, -9), ""};
  p.score = answer.score.data(), p.index = answer.index.data(), p.shift = answer.shift.data();
  const Memory workspace(cpu::strip_topk_workspace(p, threads));
  p.workspace = workspace;
  char plan[kMaxPlanName];
  CHECK(cpu::strip_topk(p, threads, plan) == Status::kOk);
  answer.plan = plan;
  return answer;
}

// The same by strip_score on every pair.
Answer score_everything(const Bank& bank, const Query& query, int64_t k, const How& how) {
  const int64_t count = bank.view.count;
  StripScoreParams p{};
  p.bank = bank.view, p.query = query.values.data(), p.width = query.width.data();
  p.batch = query.batch, p.padded_width = query.padded_width, p.cosine = how.cosine, p.dot = how.dot;
  p.circle = bank.circle.data();
  std::vector<int64_t> index(query.batch * count), shift(query.batch * count);
  std::vector<float> score(query.batch * count);
  for (int64_t i = 0; i < query.batch * count; ++i) index[i] = i % count;
  p.index = index.data(), p.n = count, p.score = score.data(), p.shift = shift.data();
  const Memory workspace(
      cpu::strip_score_workspace(query.batch, bank.view.values, bank.view.columns, query.padded_width, 2));
  p.workspace = workspace;
  CHECK(cpu::strip_score(p, 2) == Status::kOk);
  Answer answer{std::vector<float>(query.batch * k, -std::numeric_limits<float>::infinity()),
                std::vector<int64_t>(query.batch * k, -1), std::vector<int64_t>(query.batch * k, -1), ""};
  for (int64_t b = 0; b < query.batch; ++b) {
    std::vector<int64_t> order;
    for (int64_t r = 0; r < count; ++r)
      if (!std::isnan(score[b * count + r])) order.push_back(r);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t i, int64_t j) { return score[b * count + i] > score[b * count + j]; });
    if (!how.group.empty()) {
      std::set<int64_t> seen;
      order.erase(
          std::remove_if(order.begin(), order.end(), [&](int64_t r) { return !seen.insert(how.group[r]).second; }),
          order.end());
    }
    for (int64_t i = 0; i < k && i < static_cast<int64_t>(order.size()); ++i) {
      answer.score[b * k + i] = score[b * count + order[i]];
      answer.index[b * k + i] = order[i];
      answer.shift[b * k + i] = shift[b * count + order[i]];
    }
  }
  return answer;
}

void search_one(int64_t count, int64_t values, int64_t columns, int64_t batch, bool bf16, float spread) {
  std::vector<float> strips = random_values(count * values * columns, 1);
  for (int64_t i = values * columns; i < count * values * columns; ++i)
    strips[i] = strips[i % (values * columns)] * (1 - spread) + strips[i] * spread;
  if (count > 20) strips[17 * values * columns] = NAN, strips[5 * values * columns] = INFINITY;
  const Bank bank = make_bank(strips, count, values, columns, bf16);
  Query query{{}, {}, batch, (columns + 1) / 2};
  query.values = random_values(batch * values * query.padded_width, 2);
  for (int64_t b = 0; b < batch; ++b) query.width.push_back(1 + b % query.padded_width);
  if (batch > 2) query.values[values * query.padded_width] = NAN;
  How by_cosine, dot, grouped, grouped_dot;
  by_cosine.cosine = dot.dot = grouped_dot.dot = true;
  for (int64_t r = 0; r < count; ++r) grouped.group.push_back(r * r / 40), grouped_dot.group.push_back(r / 7);
  for (const How& how : {How{}, by_cosine, dot, grouped, grouped_dot})
    for (const int64_t k : {int64_t{1}, int64_t{7}, count + 3}) {
      const Answer expected = score_everything(bank, query, k, how);
      for (const int threads : {1, 3}) {
        const Answer found = search(bank, query, k, how, threads);
        CHECK(found == expected, "%s count %ld K %ld W %ld batch %ld k %ld cosine %d dot %d groups %d",
              found.plan.c_str(), static_cast<long>(count), static_cast<long>(values), static_cast<long>(columns),
              static_cast<long>(batch), static_cast<long>(k), how.cosine, how.dot, !how.group.empty());
      }
    }
}

void unpack_refuses_rows_outside() {
  const Bank bank = make_bank(random_values(3 * 2 * 8, 3), 3, 2, 8, true);
  const Memory workspace(cpu::strip_unpack_workspace(8, 1));
  std::vector<float> out(2 * 2 * 8);
  for (const int64_t row : {int64_t{-1}, int64_t{3}, std::numeric_limits<int64_t>::max()}) {
    const int64_t index[2] = {0, row};
    CHECK(cpu::strip_unpack(bank.view, index, 2, out.data(), bank.circle.data(), workspace, 1) == Status::kBadSize);
  }
}

void callers_at_once() {
  const Bank bank = make_bank(random_values(500 * 6 * 16, 4), 500, 6, 16, true);
  Query query{random_values(5 * 6 * 4, 5), {4, 4, 3, 1, 2}, 5, 4};
  const Answer expected = search(bank, query, 9, How{}, 1);
  std::vector<std::thread> callers;
  for (int i = 0; i < 6; ++i)
    callers.emplace_back([&] {
      for (int j = 0; j < 10; ++j) CHECK(search(bank, query, 9, How{}, 3) == expected);
    });
  for (std::thread& caller : callers) caller.join();
}

// Pure functions of a shape.
void plans() {
  StripTopkParams p{};
  p.bank = strip_bank_view(nullptr, 100000, 64, 16, true);
  p.batch = 64, p.padded_width = 16, p.k = 10;
  cpu::StripTopkPlan plan = strip_topk_plan(p, cpu::Isa::kAvx512Bf16, 2);
  CHECK(plan.products == cpu::Products::kBf16Dot);
  CHECK(plan.operand_words == 32 * 16 && plan.pass == 64 && plan.slots == 2 && plan.piece % 2 == 0);
  CHECK(strip_topk_plan(p, cpu::Isa::kAvx2, 2).products == cpu::Products::kBf16);
  p.bank = strip_bank_view(nullptr, 100000, 64, 16, false);
  plan = strip_topk_plan(p, cpu::Isa::kAvx512Bf16, 2);
  CHECK(plan.products == cpu::Products::kFp32 && plan.operand_words == 64 * (2 + 3 * 7));
  CHECK(plan.epsilon > 1e-6f && plan.epsilon < 1e-4f, "epsilon %g", static_cast<double>(plan.epsilon));
  p.batch = 1 << 20, p.k = 1024;  // memory stays bounded
  plan = strip_topk_plan(p, cpu::Isa::kAvx512, 64);
  CHECK(plan.pass >= 8 && plan.pass * plan.list * plan.slots * cpu::kKeptBytes <= cpu::kListBytes);
  p.bank = strip_bank_view(nullptr, 3, 1, 1, false);
  plan = strip_topk_plan(p, cpu::Isa::kBaseline, 64);
  CHECK(plan.slots == 1 && plan.piece == 2);
}

}  // namespace

int run() {
  plans();
  for_each_isa([](const char*) {
    for (const bool bf16 : {false, true})
      for (const int64_t columns : {1, 2, 3, 7, 8, 16, 20, 32, 64})
        for (const float spread : {1.0f, 1e-4f}) {
          search_one(70, 5, columns, 11, bf16, spread);
          search_one(17, 33, columns, 1, bf16, spread);
        }
    search_one(40, 600, 1, 20, true, 1.0f);
    search_one(40, 300, 4, 3, false, 1.0f);
    search_one(400, 8, 16, 5, true, 0.0f);
    unpack_refuses_rows_outside();
    callers_at_once();
  });
  return failures();
}

}  // namespace geoloc_fast::tests

int main() { return geoloc_fast::tests::run(); }
