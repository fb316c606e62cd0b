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

// What all kernels of a search share. Query slots are 8 * tiles.
struct TopkWork {
  StripTopkParams p;
  TopkPlan plan;
  double* energy;       // [batch]
  int32_t* slot_of;     // [batch] query slot, -1: has no answer
  int32_t* slot_query;  // [query slots] -1: none
  int32_t* tile_width;  // [tiles] 0: no query in it
  float* epsilon;       // [query slots]
  uint32_t* operands;   // [tiles][columns][steps][32 lanes][2]
  uint32_t* proven;     // [query slots] ordered(a lower bound of the k-th best score), 0: none yet
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

// The k-th largest key of `count` >= k lower bounds.
__device__ __forceinline__ uint32_t kth_lower(const Kept* list, int64_t count, int64_t k) {
  uint32_t key = 0;
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t at_least = key | 1u << bit;
    int64_t larger = 0;
    for (int64_t i = lane_id(); i < count; i += 32) larger += ordered(list[i].lower) >= at_least;
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
  const uint32_t least = kth_lower(list, count, k);
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
    const ExactScore found =
        score_pair<kColumns>(p.bank, p.circle, p.query + b * p.bank.values * p.padded_width, p.padded_width,
                             width_of(p.width, b, p.padded_width), work.energy[b], p.cosine, list[i].row, space);
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
  Kept* list = list_of(work, query_slot, slot);
  uint32_t key = kth_lower(list, count, k);
  const float known = from_ordered(key);
  count = compact(list, count, [=](const Kept& entry) { return entry.upper >= known; });
  float next = known;
  if (count > work.plan.list - reserve) {
    const int64_t block = static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x;
    const int64_t warp = block * (blockDim.x / 32) + threadIdx.x / 32;
    const ExactSpace space = exact_space(work.space + warp * exact_doubles(kColumns, true), kColumns);
    score_list<kColumns>(work, work.slot_query[query_slot], list, count, space, [](const Kept&) { return true; });
    count = compact(list, count, [](const Kept& entry) { return entry.lower == entry.lower; });
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
