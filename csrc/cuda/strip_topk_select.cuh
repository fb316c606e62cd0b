// strip_topk: from the lists to the answer.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cuda/strip_topk_lists.cuh"

namespace geoloc_fast::cuda {

constexpr int kSelectThreads = 256;

struct SelectShared {
  uint32_t counts[256];
  uint32_t wanted, digit, found;
  int64_t row[kSelectThreads / 32];  // the best of each warp; -1: none
  float score[kSelectThreads / 32];
  int32_t shift[kSelectThreads / 32];
};

// Calls use(entry) for all entries of a query, spread over the threads of the block.
template <typename Use>
__device__ __forceinline__ void for_entries(const TopkWork& work, int64_t query_slot, Use use) {
  const int64_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int64_t slot = warp; slot < work.plan.slots; slot += warps) {
    const int32_t count = work.count[query_slot * work.plan.slots + slot];
    Kept* list = list_of(work, query_slot, slot);
    for (int32_t i = lane_id(); i < count; i += 32) use(list[i]);
  }
}

// The wanted-th largest key, byte by byte, of the entries with has_key; 0 with less entries than that. `wanted` counts
// from 1; afterwards box.wanted is how many of the entries equal to it are among the wanted, counted from 1.
template <typename Key, typename HasKey, typename GetKey>
__device__ __forceinline__ Key select_largest(const TopkWork& work, int64_t query_slot, uint32_t wanted,
                                              SelectShared& box, HasKey has_key, GetKey get_key) {
  Key prefix = 0;
  if (threadIdx.x == 0) box.wanted = wanted;
  for (int shift = 8 * static_cast<int>(sizeof(Key)) - 8; shift >= 0; shift -= 8) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += kSelectThreads) box.counts[i] = 0;
    sync_block();
    for_entries(work, query_slot, [&](const Kept& entry) {
      if (!has_key(entry)) return;
      const Key key = get_key(entry);
      const bool same = shift + 8 >= 8 * static_cast<int>(sizeof(Key)) || key >> (shift + 8) == prefix >> (shift + 8);
      if (same) atomic_add(box.counts + (key >> shift & 255u), 1u);
    });
    sync_block();
    if (threadIdx.x == 0) {
      uint32_t left = box.wanted;
      int digit = 255;
      for (; digit > 0 && box.counts[digit] < left; --digit) left -= box.counts[digit];
      box.digit = static_cast<uint32_t>(digit);
      box.wanted = left;
    }
    sync_block();
    prefix |= static_cast<Key>(box.digit) << shift;
    sync_block();
  }
  return prefix;
}

// known[b]: the k-th best lower bound. Of the pairs already scored at just that, those up to known_row[b] are enough.
// With groups a list has one head of each, and a group is on a few lists at most: so the bound that so many times k
// heads reach is one for k groups.
__global__ void __launch_bounds__(kSelectThreads, 1) strip_topk_select_kernel(const __grid_constant__ TopkWork work) {
  SelectShared& box = shared<SelectShared>();
  for (int64_t b = blockIdx.x; b < work.p.batch; b += gridDim.x) {
    const int64_t query_slot = work.slot_of[b];
    if (query_slot < 0) continue;
    const bool grouped = work.p.group != nullptr;
    const int64_t shared_by = grouped ? lists_of_group(*work.longest, work.p.bank.columns) : 1;
    const int64_t all = work.p.k * (shared_by < work.plan.slots ? shared_by : work.plan.slots);
    const uint32_t wanted = static_cast<uint32_t>(all < 0x7fffffff ? all : 0x7fffffff);
    // A scored NaN has no rank; an unscored lower bound is a number.
    const uint32_t known = select_largest<uint32_t>(
        work, query_slot, wanted, box,
        [=](const Kept& entry) { return entry.lower == entry.lower && (!grouped || entry.head); },
        [](const Kept& entry) { return ordered(entry.lower); });
    const uint32_t ties = box.wanted;
    sync_block();
    const uint64_t row = grouped ? 0
                                 : select_largest<uint64_t>(
                                       work, query_slot, ties, box,
                                       [=](const Kept& entry) { return entry.scored && ordered(entry.lower) == known; },
                                       [](const Kept& entry) { return row_key(entry.row); });
    if (threadIdx.x == 0) {
      work.known[b] = known;
      work.known_row[b] = row;
    }
    sync_block();
  }
}

// Whether an entry can be in the answer.
__device__ __forceinline__ bool may_belong(const Kept& entry, uint32_t known, uint64_t known_row) {
  if (entry.scored)
    return entry.lower == entry.lower &&
           (ordered(entry.lower) > known || (ordered(entry.lower) == known && row_key(entry.row) >= known_row));
  return ordered(entry.upper) >= known;
}

// A warp a list.
template <int kColumns>
__global__ void __launch_bounds__(32 * kExactWarps, 1)
    strip_topk_rescore_kernel(const __grid_constant__ TopkWork work) {
  const ExactSpace space = warp_space<kColumns>(work.space, work.p.bank.columns);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kExactWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kExactWarps + threadIdx.x / 32;
       i < work.p.batch * work.plan.slots; i += step) {
    const int64_t b = i / work.plan.slots, slot = i % work.plan.slots, query_slot = work.slot_of[b];
    if (query_slot < 0) continue;
    const uint32_t known = work.known[b];
    const uint64_t known_row = work.known_row[b];
    score_list<kColumns>(work, b, list_of(work, query_slot, slot), work.count[query_slot * work.plan.slots + slot],
                         space, [=](const Kept& entry) { return may_belong(entry, known, known_row); });
  }
}

// The best row of each of the k best groups of a query, one after the other: once a group has its row, its other rows
// are struck off.
__device__ __forceinline__ void answer_groups(const TopkWork& work, int64_t b, int64_t query_slot, SelectShared& box) {
  const StripTopkParams& p = work.p;
  const int warp = static_cast<int>(threadIdx.x / 32);
  int64_t taken = -1;  // a row of the group that was answered last
  for (int64_t place = 0; place < p.k; ++place) {
    int64_t row = -1;
    float score = -kInfinite;
    int32_t shift = -1;
    auto offer = [&](int64_t other, float other_score, int32_t other_shift) {
      if (other >= 0 && (row < 0 || other_score > score || (other_score == score && other < row)))
        row = other, score = other_score, shift = other_shift;
    };
    for_entries(work, query_slot, [&](Kept& entry) {
      if (!entry.scored || entry.lower != entry.lower) return;
      if (taken >= 0 && p.group[entry.row] == p.group[taken])
        entry.scored = 0;
      else
        offer(entry.row, entry.lower, entry.shift);
    });
    for (int distance = 16; distance > 0; distance /= 2) {
      const int64_t other = shuffle_xor(row, distance);
      const float other_score = shuffle_xor(score, distance);
      const int32_t other_shift = shuffle_xor(shift, distance);
      offer(other, other_score, other_shift);
    }
    if (lane_id() == 0) box.row[warp] = row, box.score[warp] = score, box.shift[warp] = shift;
    sync_block();
    for (int i = 0; i < kSelectThreads / 32; ++i) offer(box.row[i], box.score[i], box.shift[i]);
    sync_block();
    if (threadIdx.x == 0) {
      p.score[b * p.k + place] = score;
      p.index[b * p.k + place] = row;
      p.shift[b * p.k + place] = shift;
    }
    taken = row;
    if (row >= 0) continue;
    for (int64_t i = place + 1 + threadIdx.x; i < p.k; i += kSelectThreads) {
      p.score[b * p.k + i] = -kInfinite;
      p.index[b * p.k + i] = p.shift[b * p.k + i] = -1;
    }
    return;
  }
}

// The k best of the scored, by score and then row.
__global__ void __launch_bounds__(kSelectThreads, 1) strip_topk_answer_kernel(const __grid_constant__ TopkWork work) {
  SelectShared& box = shared<SelectShared>();
  const int64_t k = work.p.k;
  auto is_scored = [](const Kept& entry) { return entry.scored && entry.lower == entry.lower; };
  auto score_key = [](const Kept& entry) { return ordered(entry.lower); };
  for (int64_t b = blockIdx.x; b < work.p.batch; b += gridDim.x) {
    const int64_t query_slot = work.slot_of[b];
    if (work.p.group != nullptr && query_slot >= 0) {
      answer_groups(work, b, query_slot, box);
      continue;
    }
    int64_t found = 0;
    Kept* best = work.best + b * k;
    if (query_slot >= 0) {
      const uint32_t wanted = static_cast<uint32_t>(k < 0x7fffffff ? k : 0x7fffffff);
      const uint32_t least = select_largest<uint32_t>(work, query_slot, wanted, box, is_scored, score_key);
      const uint32_t ties = box.wanted;
      sync_block();
      const uint64_t last = select_largest<uint64_t>(
          work, query_slot, ties, box, [=](const Kept& entry) { return is_scored(entry) && score_key(entry) == least; },
          [](const Kept& entry) { return row_key(entry.row); });
      if (threadIdx.x == 0) box.found = 0;
      sync_block();
      for_entries(work, query_slot, [&](const Kept& entry) {
        if (is_scored(entry) && (score_key(entry) > least || (score_key(entry) == least && row_key(entry.row) >= last)))
          best[atomic_add(&box.found, 1u)] = entry;
      });
      sync_block();
      found = box.found;
    }
    for (int64_t i = threadIdx.x; i < k; i += kSelectThreads) {
      const bool present = i < found;
      const Kept entry = present ? best[i] : Kept{-1, -kInfinite, -kInfinite, -1, 0, 0};
      int64_t rank = present ? 0 : i;
      for (int64_t j = 0; present && j < found; ++j)
        rank += best[j].lower > entry.lower || (best[j].lower == entry.lower && best[j].row < entry.row);
      work.p.score[b * k + rank] = entry.lower;
      work.p.index[b * k + rank] = entry.row;
      work.p.shift[b * k + rank] = entry.shift;
    }
    sync_block();
  }
}

}  // namespace geoloc_fast::cuda
