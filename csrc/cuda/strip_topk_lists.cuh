// strip_topk on the GPU: what its kernels share, and their lists. Semantics and the idea of screening:
// geoloc_fast/strip_topk.h; launch choices: strip_topk_heuristics.h.
// SPDX-License-Identifier: Apache-2.0
//
//   strip_query    energy of every query (strip_bank.cu)
//   order          queries into tiles of one width; those with NaN or Inf into none
//   operands       planes of the normalised queries, rounded to what the tensor cores take, in their register layout
//   screen         every pair of the bank: a list of pairs that may belong to the answer for each query and slot
//   select         the k-th best lower bound of a query over all its lists
//   rescore        strip_score of the pairs whose upper bound reaches it
//   answer         the k best of those
//
// A list that runs full is pruned by its warp: first to the pairs whose upper bound reaches its own k-th best lower
// bound, and if that is not enough (near-duplicates) by scoring them. So no list overflows, nothing is decided by
// chance, and the host never waits. A slot's rows ascend from one block of the bank to the next, so what comes later
// loses every tie.
#pragma once
#include "cuda/strip_exact.cuh"
#include "cuda/strip_topk_heuristics.h"

namespace geoloc_fast::cuda {

// Correlations c of a query of norm 1 are known to epsilon |S|. A score is a correlation times a window's norm, or 1
// for score="dot", times `scale`, plus or minus `slack`: 1 and kScreenSlack, or |q| and nothing (strip_topk.h).
struct QueryBound {
  float epsilon, scale;
};

// What all kernels of a search share. Query slots are 8 * tiles.
struct TopkWork {
  StripTopkParams p;
  TopkPlan plan;
  double* energy;       // [batch]
  int32_t* slot_of;     // [batch] query slot, -1: has no answer
  int32_t* slot_query;  // [query slots] -1: none
  int32_t* tile_width;  // [tiles] 0: no query in it
  QueryBound* bound;    // [query slots]
  uint32_t* operands;   // [tiles][columns][steps][32 lanes][2]
  uint32_t* proven;     // [query slots] ordered(a lower bound of the k-th best score), 0: none yet
  uint32_t* longest;    // rows of the largest group
  int32_t* count;       // [query slots][slots]
  Kept* lists;          // [query slots][slots][list]
  uint32_t* known;      // [batch] ordered(k-th best lower bound of all lists)
  uint64_t* known_row;  // [batch] of the pairs scored at just that, those of a lower row_key are not needed
  Kept* best;           // [batch][k] the answer, not in order yet
  double* space;        // for scoring: [warps of the grid][exact_doubles]
};

constexpr float kInfinite = __builtin_huge_valf();

// Larger floats have larger keys, both zeros the same; no number has key 0.
__device__ __forceinline__ uint32_t ordered(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_ordered(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// Lower rows have larger keys.
__device__ __forceinline__ uint64_t row_key(int64_t row) { return ~static_cast<uint64_t>(row); }

__device__ __forceinline__ Kept* list_of(const TopkWork& work, int64_t query_slot, int64_t slot) {
  return work.lists + (query_slot * work.plan.slots + slot) * work.plan.list;
}

// A warp has its own lists; all its lanes call these.

// With groups, marks the entry of each group that has the best lower bound, of those the first. Rows ascend from one
// block of the bank to the next, so the others of an entry's group are near it.
__device__ __forceinline__ void mark_heads(const int64_t* group, Kept* list, int32_t count) {
  for (int32_t i = lane_id(); i < count; i += 32) {
    const Kept mine = list[i];
    const int64_t own = group[mine.row];
    bool head = mine.lower == mine.lower;
    for (const int step : {-1, 1}) {
      int64_t last = -1;  // block where the group is seen to have ended; entries of that block may still be of it
      for (int32_t j = i + step; head && j >= 0 && j < count; j += step) {
        const int64_t row = list[j].row, block = row / kStripLanes;
        if (last >= 0 && block != last) break;
        if (group[row] != own) {
          if (block != mine.row / kStripLanes || last >= 0) last = block;
          continue;
        }
        last = -1;
        const float lower = list[j].lower;
        head = !(lower > mine.lower || (lower == mine.lower && row < mine.row));
      }
    }
    list[i].head = head ? 1 : 0;
  }
  sync_warp();
}

// The k-th largest key of lower bounds, of heads where there are groups; 0 with fewer than k of them.
__device__ __forceinline__ uint32_t kth_lower(const Kept* list, int64_t count, int64_t k, bool grouped) {
  uint32_t key = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t at_least = key | 1u << bit;
    int64_t larger = 0;
    for (int64_t i = lane_id(); i < count; i += 32)
      larger += ordered(list[i].lower) >= at_least && (!grouped || list[i].head);
    if (warp_sum(larger) >= k) key = at_least;
  }
  return key;
}

// Keeps what `stays` says of an entry, in order; the number that is left.
template <typename Stays>
__device__ __forceinline__ int32_t compact(Kept* list, int32_t count, Stays stays) {
  int32_t left = 0;
  for (int32_t first = 0; first < count; first += 32) {
    const int32_t i = first + lane_id();
    const bool present = i < count;
    const Kept entry = present ? list[i] : Kept{};
    const bool keep = present && stays(entry);
    const uint32_t kept = ballot(keep);  // all lanes have read: places up to here may be written
    if (keep) list[left + __popc(kept & ((1u << lane_id()) - 1u))] = entry;
    left += __popc(kept);
    sync_warp();
  }
  return left;
}

// Pairs that have been scored, down to the k best by score, then row.
__device__ __forceinline__ int32_t keep_best(Kept* list, int32_t count, int64_t k, uint32_t* key) {
  const uint32_t least = kth_lower(list, count, k, false);
  int64_t larger = 0, equal = 0;
  for (int32_t i = lane_id(); i < count; i += 32) {
    larger += ordered(list[i].lower) > least;
    equal += ordered(list[i].lower) == least;
  }
  const int64_t ties = k - warp_sum(larger);
  uint64_t lowest = 0;  // of the row keys that stay among the equal
  if (warp_sum(equal) > ties)
    for (int bit = 63; bit >= 0; --bit) {
      const uint64_t at_least = lowest | uint64_t{1} << bit;
      int64_t those = 0;
      for (int32_t i = lane_id(); i < count; i += 32)
        those += ordered(list[i].lower) == least && row_key(list[i].row) >= at_least;
      if (warp_sum(those) >= ties) lowest = at_least;
    }
  *key = least;
  return compact(list, count, [=](const Kept& entry) {
    const uint32_t mine = ordered(entry.lower);
    return mine > least || (mine == least && row_key(entry.row) >= lowest);
  });
}

// Scores the entries that `wanted` names.
template <int kColumns, typename Wanted>
__device__ __forceinline__ void score_list(const TopkWork& work, int64_t b, Kept* list, int32_t count,
                                           const ExactSpace& space, Wanted wanted) {
  const StripTopkParams& p = work.p;
  for (int32_t i = 0; i < count; ++i) {
    if (list[i].scored || !wanted(list[i])) continue;
    const ExactScore found = score_pair<kColumns>(p.bank, p.circle, p.query + b * p.bank.values * p.padded_width,
                                                  p.padded_width, width_of(p.width, b, p.padded_width), work.energy[b],
                                                  decides(p.cosine, p.dot), list[i].row, space);
    sync_warp();
    if (lane_id() == 0) {
      list[i].lower = list[i].upper = found.score;
      list[i].shift = found.shift;
      list[i].scored = 1;
    }
    sync_warp();
  }
}

// A list has no room for `reserve` more. Returns its new length and raises the threshold; see the head of this file.
template <int kColumns>
__device__ GEOLOC_FAST_NOINLINE int32_t make_room(const TopkWork& work, int64_t query_slot, int64_t slot, int32_t count,
                                                  int32_t reserve, float* threshold) {
  const int64_t k = work.p.k;
  const bool grouped = work.p.group != nullptr;
  Kept* list = list_of(work, query_slot, slot);
  if (grouped) mark_heads(work.p.group, list, count);
  uint32_t key = kth_lower(list, count, k, grouped);
  const float known = key == 0 ? -kInfinite : from_ordered(key);
  count = compact(list, count, [=](const Kept& entry) { return entry.upper >= known; });
  float next = known;
  if (count > work.plan.list - reserve) {
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    const int64_t warp = block * (blockDim.x / 32) + threadIdx.x / 32;
    const ExactSpace space = exact_space(work.space + warp * exact_doubles(kColumns, true), kColumns);
    score_list<kColumns>(work, work.slot_query[query_slot], list, count, space, [](const Kept&) { return true; });
    if (grouped) mark_heads(work.p.group, list, count);
    count =
        compact(list, count, [=](const Kept& entry) { return entry.lower == entry.lower && (!grouped || entry.head); });
    if (count < k) return count;
    count = keep_best(list, count, k, &key);
    // What comes later has a higher row, so it must beat the lowest of these.
    next = from_ordered(key + 1u);
  }
  if (lane_id() == 0) {
    atomic_max(work.proven + query_slot, key);
    if (next > *threshold) *threshold = next;
  }
  sync_warp();
  return count;
}

}  // namespace geoloc_fast::cuda
