// SPDX-License-Identifier: Apache-2.0
#include "geoloc_fast/strip_topk.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <limits>
#include <new>

#include "common/work_space.h"
#include "cpu/slots.h"
#include "cpu/strip_score.h"
#include "cpu/strip_topk_screen.h"

namespace geoloc_fast::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A pair that may belong to the answer.
struct Kept {
  int64_t row;
  float lower, upper;  // of its score
  int32_t shift;       // what strip_score chooses, or kAnyShift
  bool scored;         // lower == upper is the score
};
static_assert(sizeof(Kept) == kKeptBytes, "the plan bounds the memory of lists");

bool better(const Kept& a, const Kept& b) { return a.lower != b.lower ? a.lower > b.lower : a.row < b.row; }

// Everything one call needs, in the caller's workspace.
struct Search {
  Search(const StripTopkParams& p, Isa an_isa, int threads)
      : params(p), isa(an_isa), plan(strip_topk_plan(p, an_isa, threads)) {
    screen_bytes = GEOLOC_FAST_KERNEL_OF(isa, strip_topk_scratch)(p.bank.columns, plan.pass);
    score_bytes = GEOLOC_FAST_KERNEL_OF(isa, strip_score_scratch)(p.bank.columns);
    score_pair = GEOLOC_FAST_KERNEL_OF(isa, strip_score_pair);
  }

  const StripTopkParams& params;
  const Isa isa;
  const StripTopkPlan plan;
  ScreenJob job{};
  decltype(&baseline::strip_score_pair) score_pair;
  int64_t screen_bytes, score_bytes;

  int64_t* order;                  // [batch] queries by width
  int64_t* answer_row;             // [pass] which row of the output a live query fills
  ExactQuery* exact;               // [pass]
  double* exact_values;            // [pass][exact_query_doubles]
  std::atomic<float>* proven;      // [pass] a lower bound of the k-th best score, found by any slot
  float* threshold;                // [slots][pass]: pairs below are of no interest to the slot
  Kept* kept;                      // [pass][slots][list]
  int64_t* kept_count;             // [pass][slots]
  Kept* held;                      // [pass][slots] the best row of the group that a slot is in; row -1: none
  int64_t *todo_begin, *todo_end;  // [pass] which pairs of a query are to be rescored
  uint8_t* score_scratch;          // [slots][score_bytes]
  uint8_t* screen_scratch;         // [slots][screen_bytes]

  Kept* list_of(int64_t query, int slot) const { return kept + (query * plan.slots + slot) * plan.list; }
  Kept& held_by(int64_t query, int slot) const { return held[query * plan.slots + slot]; }
  int64_t& count_of(int64_t query, int slot) const { return kept_count[query * plan.slots + slot]; }
};

int64_t carve(Search& s, void* workspace) {
  const StripTopkParams& p = s.params;
  const int64_t pass = s.plan.pass, slots = s.plan.slots, columns = p.bank.columns;
  WorkSpace space(workspace);
  s.order = space.take<int64_t>(p.batch);
  s.answer_row = space.take<int64_t>(pass);
  s.exact = space.take<ExactQuery>(pass);
  s.exact_values = space.take<double>(pass * exact_query_doubles(p.bank.values, p.padded_width));
  s.job.queries = space.take<ScreenQuery>(pass);
  s.job.operands = space.take<uint32_t>(pass * s.plan.operand_words);
  s.job.float_circle = space.take<float>(2 * columns);
  s.proven = space.take<std::atomic<float>>(pass);
  s.threshold = space.take<float>(slots * ((pass + 15) / 16 * 16));  // no line belongs to two slots
  s.kept = space.take<Kept>(pass * slots * s.plan.list);
  s.kept_count = space.take<int64_t>(pass * slots);
  s.held = space.take<Kept>(pass * slots);
  s.todo_begin = space.take<int64_t>(pass);
  s.todo_end = space.take<int64_t>(pass);
  s.score_scratch = space.take<uint8_t>(slots * s.score_bytes);
  s.screen_scratch = space.take<uint8_t>(slots * s.screen_bytes);
  return space.bytes();
}

float* threshold_of(const Search& s, int slot) { return s.threshold + slot * ((s.plan.pass + 15) / 16 * 16); }

// NaN, or beneath every number.
bool no_score(const Kept& pair) { return !(pair.lower > -kInfinity); }

// Scores kept[i] for good; false if it has no score.
bool rescore(const Search& s, int64_t query, int slot, Kept& pair) {
  if (pair.scored) return !no_score(pair);
  const ExactScore found =
      s.score_pair(s.params.bank, s.params.circle, s.exact[query], decides(s.params.cosine, s.params.dot), pair.row,
                   pair.shift, nullptr, s.score_scratch + slot * s.score_bytes);
  pair.lower = pair.upper = found.score;
  pair.shift = found.shift;
  pair.scored = true;
  return !no_score(pair);
}

// The list of a slot is full: keeps what may still belong to the answer, at most three quarters of it, and raises
// the slot's threshold.
void make_room(Search& s, int64_t query, int slot) {
  Kept* list = s.list_of(query, slot);
  int64_t& count = s.count_of(query, slot);
  const int64_t k = s.params.k;
  std::nth_element(list, list + k - 1, list + count, better);
  float known = list[k - 1].lower;
  count = std::remove_if(list, list + count, [=](const Kept& pair) { return pair.upper < known; }) - list;
  if (4 * count > 3 * s.plan.list) {
    count = std::remove_if(list, list + count, [&](Kept& pair) { return !rescore(s, query, slot, pair); }) - list;
    if (count < k) return;
    std::nth_element(list, list + k - 1, list + count, better);
    known = list[k - 1].lower;
    count = k;
  }
  // What comes later in this slot has a higher row than all of these k, so it must beat the lowest of them.
  float& threshold = threshold_of(s, slot)[query];
  threshold = std::max(threshold, std::nextafter(known, kInfinity));
  float before = s.proven[query].load(std::memory_order_relaxed);
  while (before < known && !s.proven[query].compare_exchange_weak(before, known, std::memory_order_relaxed)) {
  }
}

void put(Search& s, int64_t query, int slot, const Kept& pair) {
  int64_t& count = s.count_of(query, slot);
  s.list_of(query, slot)[count++] = pair;
  if (count == s.plan.list) make_room(s, query, slot);
}

// The better of two rows of one group, `later` of a higher row than `best`, goes into `best`.
void best_of_group(const Search& s, int64_t query, int slot, Kept& best, Kept later) {
  if (later.upper > best.lower && !(later.lower > best.upper)) {
    rescore(s, query, slot, best);
    rescore(s, query, slot, later);
  }
  if (later.lower > best.upper || no_score(best)) best = later;
}

void keep(void* owner, int slot, const ScreenHits& hits) {
  Search& s = *static_cast<Search*>(owner);
  const int64_t* group = s.params.group;
  for (int lane = 0; lane < kStripLanes; ++lane) {
    if (!(hits.lanes >> lane & 1u) || !(hits.upper[lane] >= threshold_of(s, slot)[hits.query])) continue;
    const Kept pair{hits.block * kStripLanes + lane, hits.lower[lane], hits.upper[lane], hits.shift[lane], false};
    if (group == nullptr) {
      put(s, hits.query, slot, pair);
      continue;
    }
    Kept& held = s.held_by(hits.query, slot);
    if (held.row >= 0 && group[held.row] == group[pair.row]) {
      best_of_group(s, hits.query, slot, held, pair);
    } else {
      if (held.row >= 0 && held.upper >= threshold_of(s, slot)[hits.query]) put(s, hits.query, slot, held);
      held = pair;
    }
  }
}

// Makes queries [begin, end) of `order` ready; those with NaN or Inf are answered at once and left out.
void prepare_pass(Search& s, int64_t begin, int64_t end, int threads) {
  const StripTopkParams& p = s.params;
  const int64_t values = p.bank.values, per_query = exact_query_doubles(values, p.padded_width);
  const auto prepare = GEOLOC_FAST_KERNEL_OF(s.isa, strip_query_prepare);
  auto exact = [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t b = s.order[begin + i];
      s.exact[i] = prepare(p.query + b * values * p.padded_width, values, p.padded_width,
                           p.width ? p.width[b] : p.padded_width, s.exact_values + i * per_query);
    }
  };
  parallel_for(end - begin, 1, threads, exact);
  ScreenJob& job = s.job;
  job.live = 0;
  for (int64_t i = 0; i < end - begin; ++i) {
    const int64_t b = s.order[begin + i];
    if (!std::isfinite(s.exact[i].energy)) {
      std::fill_n(p.score + b * p.k, p.k, -kInfinity);
      std::fill_n(p.index + b * p.k, p.k, -1);
      std::fill_n(p.shift + b * p.k, p.k, -1);
      continue;
    }
    s.exact[job.live] = s.exact[i];
    s.answer_row[job.live] = b;
    job.queries[job.live] = {
        p.query + b * values * p.padded_width, s.exact[i].width, s.exact[i].energy, 0.0f, 0.0f, 1.0f};
    ++job.live;
  }
  const auto tile_at = GEOLOC_FAST_KERNEL_OF(s.isa, strip_topk_tile);
  const auto operands = GEOLOC_FAST_KERNEL_OF(s.isa, strip_topk_operands);
  for_slots(job.live, 1, std::min(threads, s.plan.slots), [&](int slot, int64_t i, int64_t) {
    int64_t first = 0, tile = tile_at(job.products, p.bank.columns, 0, job.live);
    for (; first + tile <= i; tile = tile_at(job.products, p.bank.columns, first, job.live)) first += tile;
    operands(job, i, first, tile, s.screen_scratch + slot * s.screen_bytes);
  });
  for (int64_t q = 0; q < job.live; ++q) new (s.proven + q) std::atomic<float>(-kInfinity);
  for (int slot = 0; slot < s.plan.slots; ++slot) std::fill_n(threshold_of(s, slot), job.live, -kInfinity);
  std::fill_n(s.kept_count, job.live * s.plan.slots, 0);
  for (int64_t i = 0; i < job.live * s.plan.slots; ++i) s.held[i].row = -1;
}

void screen_pass(Search& s, int threads) {
  const auto screen = GEOLOC_FAST_KERNEL_OF(s.isa, strip_topk_screen);
  const int64_t blocks = (s.params.bank.count + kStripLanes - 1) / kStripLanes;
  for_slots(blocks, s.plan.piece, std::min(threads, s.plan.slots), [&](int slot, int64_t begin, int64_t end) {
    float* threshold = threshold_of(s, slot);
    for (int64_t q = 0; q < s.job.live; ++q)
      threshold[q] = std::max(threshold[q], s.proven[q].load(std::memory_order_relaxed));
    screen(s.job, slot, begin, end, threshold, s.screen_scratch + slot * s.screen_bytes);
  });
}

bool by_row(const Kept& a, const Kept& b) { return a.row < b.row; }

// Removes pairs that turned out to have no score.
int64_t drop_unscored(Kept* list, int64_t count) { return std::remove_if(list, list + count, no_score) - list; }

// Rescores kept[todo_begin, todo_end) of every query. Each stretch is sorted by row, and all queries go through the
// bank together, so that a block that several of them want is read once.
void rescore_all(Search& s, int threads) {
  int64_t total = 0;
  for (int64_t q = 0; q < s.job.live; ++q) total += s.todo_end[q] - s.todo_begin[q];
  const int64_t blocks = (s.params.bank.count + kStripLanes - 1) / kStripLanes;
  const int64_t stretches = std::min(blocks, std::max<int64_t>(total / 16, 8 * s.plan.slots));
  if (total == 0) return;
  for_slots(stretches, 1, std::min(threads, s.plan.slots), [&](int slot, int64_t stretch, int64_t) {
    const int64_t begin = blocks * stretch / stretches * kStripLanes;
    const int64_t end = blocks * (stretch + 1) / stretches * kStripLanes;
    for (int64_t q = 0; q < s.job.live; ++q) {
      Kept* list = s.list_of(q, 0);
      Kept* last = list + s.todo_end[q];
      Kept* pair =
          std::lower_bound(list + s.todo_begin[q], last, begin, [](const Kept& a, int64_t row) { return a.row < row; });
      for (; pair != last && pair->row < end; ++pair) rescore(s, q, slot, *pair);
    }
  });
}

// One list of what the slots kept, and of a group that several of them kept only the best.
void gather_lists(Search& s, int64_t q, int scratch_slot) {
  for (int slot = 0; slot < s.plan.slots; ++slot)  // a list that was not full has room for one
    if (s.held_by(q, slot).row >= 0) s.list_of(q, slot)[s.count_of(q, slot)++] = s.held_by(q, slot);
  Kept* list = s.list_of(q, 0);
  int64_t& count = s.count_of(q, 0);
  for (int slot = 1; slot < s.plan.slots; ++slot) {
    const Kept* other = s.list_of(q, slot);
    std::copy(other, other + s.count_of(q, slot), list + count);
    count += s.count_of(q, slot);
  }
  const int64_t* group = s.params.group;
  if (group == nullptr || s.plan.slots == 1) return;
  std::sort(list, list + count, by_row);
  int64_t groups = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (groups > 0 && group[list[groups - 1].row] == group[list[i].row])
      best_of_group(s, q, scratch_slot, list[groups - 1], list[i]);
    else
      list[groups++] = list[i];
  }
  count = groups;
}

// Decides between the pairs that the slots kept and writes the answers.
void answer_pass(Search& s, int threads) {
  const StripTopkParams& p = s.params;
  const int64_t k = p.k;
  auto each_query = [&](auto work) {
    auto task = [&](int64_t begin, int64_t end) {
      for (int64_t q = begin; q < end; ++q) work(q, s.list_of(q, 0), s.count_of(q, 0));
    };
    parallel_for(s.job.live, 1, threads, task);
  };
  // First the k of the highest lower bounds: their scores leave fewer of the others to look at.
  for_slots(s.job.live, 1, std::min(threads, s.plan.slots),
            [&](int slot, int64_t q, int64_t) { gather_lists(s, q, slot); });
  each_query([&](int64_t q, Kept* list, int64_t& count) {
    if (count > k) std::nth_element(list, list + k - 1, list + count, better);
    s.todo_begin[q] = 0;
    s.todo_end[q] = std::min(count, k);
    std::sort(list, list + s.todo_end[q], by_row);
  });
  rescore_all(s, threads);
  each_query([&](int64_t q, Kept* list, int64_t& count) {
    const int64_t scored = s.todo_end[q], left = drop_unscored(list, scored);
    float known = -kInfinity;
    if (left == k) known = std::min_element(list, list + k, [](auto& a, auto& b) { return a.lower < b.lower; })->lower;
    Kept* rest = std::remove_if(list + scored, list + count, [=](const Kept& pair) { return pair.upper < known; });
    count = std::copy(list + scored, rest, list + left) - list;
    s.todo_begin[q] = left;
    s.todo_end[q] = count;
    std::sort(list + left, list + count, by_row);
  });
  rescore_all(s, threads);
  each_query([&](int64_t q, Kept* list, int64_t& count) {
    count = drop_unscored(list, count);
    const int64_t best = std::min(count, k), at = s.answer_row[q] * k;
    std::partial_sort(list, list + best, list + count, better);
    for (int64_t i = 0; i < k; ++i) {
      p.score[at + i] = i < best ? list[i].lower : -kInfinity;
      p.index[at + i] = i < best ? list[i].row : -1;
      p.shift[at + i] = i < best ? list[i].shift : -1;
    }
  });
}

bool sizes_fit(const StripTopkParams& p) {
  return p.bank.columns >= 1 && p.bank.columns <= kMaxStripColumns && p.bank.values >= 1 && p.k >= 1 &&
         p.padded_width >= 1 && p.padded_width <= p.bank.columns;
}

}  // namespace

int64_t strip_topk_workspace(const StripTopkParams& params, int threads) {
  if (!sizes_fit(params)) return 0;
  threads = strip_topk_threads(params, threads);
  // The widest scratch of any instruction set, so that a change of it between the two calls does no harm.
  int64_t bytes = 0;
  for (int isa = 0; isa < kIsaCount; ++isa) {
    if (isa_problem(static_cast<Isa>(isa))[0] != '\0') continue;
    Search s(params, static_cast<Isa>(isa), threads);
    bytes = std::max(bytes, carve(s, nullptr));
  }
  return bytes;
}

Status strip_topk(const StripTopkParams& p, int threads, char plan[kMaxPlanName]) {
  if (!sizes_fit(p)) return Status::kBadSize;
  for (int64_t b = 0; p.width != nullptr && b < p.batch; ++b)
    if (p.width[b] < 1 || p.width[b] > p.padded_width) return Status::kBadSize;

  threads = strip_topk_threads(p, threads);
  Search s(p, current_isa(), threads);
  carve(s, p.workspace);
  s.job.bank = p.bank;
  s.job.circle = p.circle;
  s.job.pass = s.plan.pass;
  s.job.padded_width = p.padded_width;
  s.job.cosine = p.cosine || p.dot;
  s.job.dot = p.dot;
  s.job.alive = p.alive;
  s.job.products = s.plan.products;
  s.job.epsilon = s.plan.epsilon;
  s.job.operand_words = s.plan.operand_words;
  s.job.owner = &s;
  s.job.keep = keep;
  if (!has_fixed_inverse(p.bank.columns)) {
    float* rounded = const_cast<float*>(s.job.float_circle);
    for (int64_t i = 0; i < 2 * p.bank.columns; ++i) rounded[i] = static_cast<float>(p.circle[i]);
  }
  auto width_of = [&](int64_t b) { return p.width ? p.width[b] : p.padded_width; };
  for (int64_t b = 0; b < p.batch; ++b) s.order[b] = b;
  if (p.width != nullptr)
    std::sort(s.order, s.order + p.batch,
              [&](int64_t a, int64_t b) { return width_of(a) != width_of(b) ? width_of(a) < width_of(b) : a < b; });
  for (int64_t begin = 0; begin < p.batch; begin += s.plan.pass) {
    prepare_pass(s, begin, std::min(p.batch, begin + s.plan.pass), threads);
    if (s.job.live == 0) continue;
    screen_pass(s, threads);
    answer_pass(s, threads);
  }

  const char* form = p.bank.columns == 1 ? "flat" : "spectral";
  const int length = std::snprintf(plan, kMaxPlanName, "%s/%s/%s", isa_name(s.isa),
                                   kProductsNames[static_cast<int>(s.plan.products)], form);
  if (p.bank.columns > 1 && has_fixed_inverse(p.bank.columns))
    std::snprintf(plan + length, static_cast<size_t>(kMaxPlanName - length), "%d", static_cast<int>(p.bank.columns));
  return Status::kOk;
}

}  // namespace geoloc_fast::cpu
