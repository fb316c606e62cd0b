// Kernels of strip_topk on the GPU. Semantics and the idea of screening: geoloc_fast/strip_topk.h; launch choices:
// strip_topk_heuristics.h.
// SPDX-License-Identifier: Apache-2.0
//
//   strip_query    energy of every query (strip_bank.cu)
//   order          queries into tiles of one width; those with NaN or Inf into none
//   operands       planes of the normalised queries, rounded to what the tensor cores take, in their register layout
//   screen, exact  every pair of the bank: a list of pairs that may belong to the answer for each query and slot
//   select         the k-th best lower bound of a query over all its lists
//   rescore        strip_score of the pairs whose upper bound reaches it
//   answer         the k best of those
//
// A list that runs full is pruned by its warp: first to the pairs whose upper bound reaches its own k-th best lower
// bound, and if that is not enough (near-duplicates) by scoring them. So no list overflows, nothing is decided by
// chance, and the host never waits. A slot's rows ascend from one block of the bank to the next, so what comes later
// loses every tie.
//
// An mma takes 16 strips as the rows of a: row g is strip 2g and row g + 8 strip 2g + 1, so that a lane reads both in
// one 8-byte load and a warp reads 4 lines of 64 bytes, without bank conflicts (in_ring). k runs over the words: a bf16
// word holds two channels as the mma wants them, an fp32 word one tf32. In lane l, with g = l / 4, t = l % 4:
// words t and t + 4 of a step, strips 2g and 2g + 1, and of the sums: queries 2t and 2t + 1 with these two strips.
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

template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  return value;
}

// ---------------------------------------------------------------------------------------------------------------
// Queries.

constexpr int kOrderThreads = 256;

struct OrderShared {
  int32_t queries[kMaxStripColumns + 1];  // of each width, then the next free place
};

// One block. Where a query stands in its tiles has no influence on any answer.
__global__ void __launch_bounds__(kOrderThreads, 1) strip_topk_order_kernel(const __grid_constant__ TopkWork work) {
  OrderShared& shared_order = shared<OrderShared>();
  int32_t* places = shared_order.queries;
  const StripTopkParams& p = work.p;
  const int64_t thread = threadIdx.x;
  for (int64_t w = thread; w <= p.padded_width; w += kOrderThreads) places[w] = 0;
  for (int64_t i = thread; i < work.plan.tiles * kTileQueries; i += kOrderThreads) work.slot_query[i] = -1;
  for (int64_t i = thread; i < work.plan.tiles; i += kOrderThreads) work.tile_width[i] = 0;
  sync_block();
  for (int64_t b = thread; b < p.batch; b += kOrderThreads)
    if (is_finite(work.energy[b])) atomic_add(places + width_of(p.width, b, p.padded_width), 1);
  sync_block();
  if (thread == 0) {
    int32_t tile = 0;
    for (int64_t w = 1; w <= p.padded_width; ++w) {
      const int32_t tiles = (places[w] + kTileQueries - 1) / kTileQueries;
      places[w] = tile * kTileQueries;
      for (int32_t i = 0; i < tiles; ++i) work.tile_width[tile + i] = static_cast<int32_t>(w);
      tile += tiles;
    }
  }
  sync_block();
  for (int64_t b = thread; b < p.batch; b += kOrderThreads) {
    int32_t slot = -1;
    if (is_finite(work.energy[b])) {
      slot = atomic_add(places + width_of(p.width, b, p.padded_width), 1);
      work.slot_query[slot] = static_cast<int32_t>(b);
    }
    work.slot_of[b] = slot;
  }
}

constexpr int kOperandWarps = 4;

// A warp a query slot. The planes are sums from the table; their float64 error is far below what epsilon is rounded by.
__global__ void __launch_bounds__(32 * kOperandWarps, 1)
    strip_topk_operands_kernel(const __grid_constant__ TopkWork work) {
  const StripTopkParams& p = work.p;
  const int64_t columns = p.bank.columns, words = work.plan.steps * 8, per_word = p.bank.bf16 ? 2 : 1;
  const int64_t slots = work.plan.tiles * kTileQueries, step = static_cast<int64_t>(gridDim.x) * kOperandWarps;
  for (int64_t slot = static_cast<int64_t>(blockIdx.x) * kOperandWarps + threadIdx.x / 32; slot < slots; slot += step) {
    const int64_t b = work.slot_query[slot];
    const int64_t width = b < 0 ? 0 : width_of(p.width, b, p.padded_width);
    const double energy = b < 0 ? 0.0 : work.energy[b], scale = energy > 0.0 ? 1.0 / sqrt(energy) : 0.0;
    const float* query = p.query + (b < 0 ? 0 : b) * p.bank.values * p.padded_width;
    double residual = 0.0;
    for (int64_t i = lane_id(); i < columns * words; i += 32) {
      const int64_t plane = i / words, word = i % words, frequency = (plane + 1) / 2;
      const bool ends = plane == 0 || (columns % 2 == 0 && plane == columns - 1), sine = !ends && plane % 2 == 0;
      const double factor = scale * (ends ? plane_ends(columns) : plane_middle(columns));
      uint32_t bits = 0;
      for (int64_t j = 0; j < per_word; ++j) {
        const int64_t c = word * per_word + j;
        double sum = 0.0;
        if (c < p.bank.values)
          for (int64_t x = 0, at = 0; x < width; ++x, at = (at + frequency) % columns) {
            const double value = static_cast<double>(query[c * p.padded_width + x]);
            sum += sine ? -value * p.circle[columns + at] : value * p.circle[at];
          }
        sum *= factor;
        const float single = static_cast<float>(sum);
        // tf32 to nearest: what the tensor cores drop is zero then.
        const uint32_t rounded =
            p.bank.bf16 ? bf16_bits(single) << 16 : (__float_as_uint(single) + 0x1000u) & 0xffffe000u;
        const double error = sum - static_cast<double>(__uint_as_float(rounded));
        residual += error * error;
        bits |= p.bank.bf16 ? rounded >> 16 << 16 * j : rounded;
      }
      const int64_t lane = slot % kTileQueries * 4 + word % 4, at = plane * work.plan.steps + word / 8;
      work.operands[(((slot / kTileQueries) * columns * work.plan.steps + at) * 32 + lane) * 2 + word % 8 / 4] = bits;
    }
    residual = warp_sum(residual);
    if (lane_id() == 0)
      work.epsilon[slot] = scale == 0.0 ? 0.0f : work.plan.epsilon + static_cast<float>(1.1 * sqrt(residual));
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Lists. A warp has its own; all its lanes call these.

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

// ---------------------------------------------------------------------------------------------------------------
// Every pair by the routine that decides.

template <int kColumns>
__global__ void __launch_bounds__(32 * kExactWarps, 1) strip_topk_exact_kernel(const __grid_constant__ TopkWork work) {
  const StripTopkParams& p = work.p;
  const int64_t slot = static_cast<int64_t>(blockIdx.x) * kExactWarps + threadIdx.x / 32;
  if (slot >= work.plan.slots) return;
  const int64_t warp = static_cast<int64_t>(blockIdx.y) * gridDim.x * kExactWarps + slot;
  const ExactSpace space =
      exact_space(work.space + warp * exact_doubles(p.bank.columns, kColumns != 0), p.bank.columns);
  for (int64_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
    const int64_t query_slot = work.slot_of[b];
    if (query_slot < 0) continue;
    Kept* list = list_of(work, query_slot, slot);
    const int64_t width = width_of(p.width, b, p.padded_width);
    const float* query = p.query + b * p.bank.values * p.padded_width;
    int32_t count = 0;
    float least = -kInfinite;  // later rows must beat it
    for (int64_t row = slot; row < p.bank.count; row += work.plan.slots) {
      if (p.alive && !p.alive[row]) continue;
      const ExactScore found =
          score_pair<kColumns>(p.bank, p.circle, query, p.padded_width, width, work.energy[b], p.cosine, row, space);
      if (!(found.score > least)) continue;
      if (lane_id() == 0) {
        list[count].row = row;
        list[count].lower = list[count].upper = found.score;
        list[count].shift = found.shift;
        list[count].scored = 1;
      }
      sync_warp();
      if (++count < work.plan.list) continue;
      uint32_t key;
      count = keep_best(list, count, p.k, &key);
      least = from_ordered(key);
    }
    if (lane_id() == 0) work.count[query_slot * work.plan.slots + slot] = count;
    sync_warp();
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Screening.

// Where a block's shared memory lies: operands, the ring, and for every warp norms, a desk, thresholds, list lengths.
struct ScreenShared {
  uint32_t* operands;  // [tiles][columns][steps][32][2]
  uint8_t* ring;       // [stages][blocks_deep][unit_bytes]
  float* norms;        // [row][norm_pitch]: 1 / |window|, 0 where the window's energy does not count
  float* desk;         // [32 lanes][columns / 2] where two warps share a tile
  float* partner;      // the desk of the warp with the other half of the frequencies
  float* thresholds;   // [tiles_a_warp * 8]
  int32_t* counts;     // [tiles_a_warp * 8]
};

template <int kColumns, int kTiles>
__device__ __forceinline__ ScreenShared screen_layout(const TopkPlan& plan) {
  const int warp = static_cast<int>(threadIdx.x / 32), queries = kTiles * kTileQueries;
  uint8_t* at = dynamic_shared<uint8_t>();
  ScreenShared layout;
  layout.operands = reinterpret_cast<uint32_t*>(at);
  at += kTiles * plan.tiles_across * kColumns * plan.steps * 256;
  layout.ring = at;
  at += screen_stages(kColumns) * plan.blocks_deep * plan.unit_bytes;
  float* floats = reinterpret_cast<float*>(at);
  layout.norms = floats + warp * norm_floats(kColumns);
  floats += plan.warps * norm_floats(kColumns);
  layout.desk = floats + warp * desk_floats(kColumns);
  layout.partner = floats + (warp ^ 1) * desk_floats(kColumns);
  floats += plan.warps * desk_floats(kColumns);
  layout.thresholds = floats + warp * queries;
  layout.counts = reinterpret_cast<int32_t*>(floats + plan.warps * queries) + warp * queries;
  return layout;
}

// The ring holds units of a block of the bank. W = 16 and 64: first the end of it, plane W-1 and the energies, so that
// norms are made while there are no sums yet; then plane 0; then the two planes of a frequency at a time. Where two
// warps share the frequencies: plane 0 with the first, then an even frequency with the odd one after it. W = 1:
// kFlatWords words at a time, the last with the energies.
template <int kColumns>
__device__ __forceinline__ int32_t unit_count(const StripBankView& bank) {
  return kColumns == 1 ? static_cast<int32_t>((bank.words + kFlatWords - 1) / kFlatWords)
                       : kColumns / screen_split(kColumns) / 2 + 1;
}
template <int kColumns>
__device__ __forceinline__ void unit_range(const StripBankView& bank, int32_t unit, int64_t* begin, int32_t* bytes) {
  const int32_t words = static_cast<int32_t>(bank.words);
  if constexpr (kColumns == 1) {
    const int32_t left = words - unit * kFlatWords;
    *begin = unit * (kFlatWords * 64);
    *bytes = (left > kFlatWords ? kFlatWords : left + 1) * 64;
    if (left == kFlatWords) *bytes += 64;
  } else {
    constexpr int kPlanes = 2 * screen_split(kColumns);
    const int32_t first = unit == 0 ? kColumns - 1 : unit == 1 ? 0 : kPlanes * (unit - 1) - 1;
    *begin = static_cast<int64_t>(first) * words * 64;
    *bytes = (unit == 0 ? words + kColumns : (unit == 1 ? kPlanes - 1 : kPlanes) * words) * 64;
  }
}

template <bool kBf16>
__device__ __forceinline__ void mma_step(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kBf16)
    mma_bf16(d, a, b);
  else
    mma_tf32(d, a, b);
}

// Where this lane finds strips 2g and 2g + 1 in line `line` + t of a unit.
__device__ __forceinline__ const uint8_t* lane_strips(const uint8_t* unit, int line) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  return unit + in_ring((line + t) * 64 + 8 * g);
}
// Words t and t + 4 of a step, of strips 2g and 2g + 1; zero past the last word, where another plane begins. Lines 4
// and 8 further are swapped alike.
__device__ __forceinline__ void load_strips(uint32_t (&a)[4], const uint8_t* strips, int step, int words) {
  const int word = step * 8 + lane_id() % 4;
  const uint2 none = make_uint2(0, 0);
  const uint2 low = word < words ? load_vector<uint2>(strips + step * 512) : none;
  const uint2 high = word + 4 < words ? load_vector<uint2>(strips + step * 512 + 256) : none;
  a[0] = low.x, a[1] = low.y, a[2] = high.x, a[3] = high.y;
}
__device__ __forceinline__ void load_queries(uint32_t (&b)[2], const uint32_t* operands, int at) {
  const uint2 words = load_vector<uint2>(operands + (at * 32 + lane_id()) * 2);
  b[0] = words.x, b[1] = words.y;
}

// A plane that is real by nature (frequency 0, W/2): its product with the queries' plane.
template <bool kBf16>
__device__ __forceinline__ void real_product(float (&sum)[4], const uint8_t* unit, int line, const uint32_t* operands,
                                             int plane, int steps, int words) {
  const uint8_t* strips = lane_strips(unit, line);
  for (int step = 0; step < steps; ++step) {
    uint32_t a[4], b[2];
    load_strips(a, strips, step, words);
    load_queries(b, operands, plane * steps + step);
    mma_step<kBf16>(sum, a, b);
  }
}

// A frequency whose planes begin at `line` of the unit and at `plane` of the operands: strips times the queries'
// conjugate.
template <bool kBf16>
__device__ __forceinline__ void complex_product(float (&re)[4], float (&im)[4], const uint8_t* unit, int line,
                                                const uint32_t* operands, int plane, int steps, int words) {
  const uint8_t *strips = lane_strips(unit, line), *strips_im = lane_strips(unit, line + words);
  for (int step = 0; step < steps; ++step) {
    uint32_t a[4], a_im[4], b[2], b_im[2], b_minus[2];
    load_strips(a, strips, step, words);
    load_strips(a_im, strips_im, step, words);
    load_queries(b, operands, plane * steps + step);
    load_queries(b_im, operands, (plane + 1) * steps + step);
    for (int i = 0; i < 2; ++i) b_minus[i] = b_im[i] ^ (kBf16 ? 0x80008000u : 0x80000000u);
    mma_step<kBf16>(re, a, b);
    mma_step<kBf16>(im, a_im, b);
    mma_step<kBf16>(re, a_im, b_im);
    mma_step<kBf16>(im, a, b_minus);
  }
}

// Rows are the strips that a warp tests, in the order of an mma's rows: of two warps that share a tile, the first tests
// the even strips and the other the odd ones.
template <int kColumns>
__device__ __forceinline__ int strip_of(int row, int half) {
  return screen_split(kColumns) == 1 ? 2 * (row % 8) + row / 8 : 2 * row + half;
}

// What a warp knows of its rows of a block of strips; bit = row.
struct BlockFacts {
  uint32_t valid;  // exist and are alive
  uint32_t sight;  // of these: to be rescored at sight, the bound does not hold or a window's energy is on the brink
  float norm[2];   // |S| rounded up, of this lane's rows g and g + 8
};

// Fills the warp's norms for queries of `width` columns. Column energies are lines of the unit from `line`. Windows are
// sums of runs of about sqrt(W) columns and what is left: without a subtraction, so the error stays relative.
template <int kColumns>
__device__ __forceinline__ BlockFacts look_at_block(const StripTopkParams& p, int64_t block, int half,
                                                    const uint8_t* unit, int line, int width, float* norms) {
  constexpr int kRows = kStripLanes / screen_split(kColumns), kParts = 32 / kRows;
  constexpr int kRun = kColumns == 64 ? 8 : kColumns == 16 ? 4 : 1, kMine = (kColumns + kParts - 1) / kParts;
  const int lane = lane_id(), part = lane / kRows, strip = strip_of<kColumns>(lane % kRows, half);
  const int64_t row = block * kStripLanes + strip;
  float* mine = norms + lane % kRows * norm_pitch(kColumns);
  auto energy = [&](int column) {
    return load_vector<float>(unit + in_ring((line + column % kColumns) * 64 + 4 * strip));
  };
  for (int s = part; s < kColumns; s += kParts) {
    float run = energy(s);
    for (int i = 1; i < kRun; ++i) run += energy(s + i);
    mine[s] = run;
  }
  sync_warp();
  float total = 0.0f;
  for (int s = 0; s < kColumns; s += kRun) total += mine[s];
  float window[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) window[i] = width < kColumns ? 0.0f : total;
  if (width < kColumns) {
    int x = 0;
    for (; x + kRun <= width; x += kRun)
#pragma unroll
      for (int i = 0; i < kMine; ++i) window[i] += mine[(part + i * kParts + x) % kColumns];
    for (; x < width; ++x)
#pragma unroll
      for (int i = 0; i < kMine; ++i) window[i] += energy(part + i * kParts + x);
  }
  sync_warp();  // the runs have been read
  const float below = total * 1e-6f * (1.0f - 1e-5f), above = total * 1e-6f * (1.0f + 1e-5f);
  bool brink = false;
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    if (part + i * kParts >= kColumns) continue;
    brink = brink || (width < kColumns && window[i] >= below && window[i] <= above);
    mine[part + i * kParts] = window[i] > below ? rsqrtf(window[i]) : 0.0f;
  }
  const bool usual = total >= 0x1p-80f && total <= 0x1p110f;
  BlockFacts facts;
  const uint32_t valid = ballot(row < p.bank.count && (!p.alive || p.alive[row < p.bank.count ? row : 0]));
  uint32_t odd = ballot(!usual || brink);
  for (int rows = kRows; rows < 32; rows *= 2) odd |= odd >> rows;
  facts.valid = kRows == 16 ? valid & 0xffffu : valid & 0xffu;
  facts.sight = odd & facts.valid;
  const float norm = usual ? __fsqrt_rn(total) * (1.0f + 0x1p-16f) : 0.0f;
  for (int i = 0; i < 2; ++i) facts.norm[i] = shuffle(norm, (lane / 4 + 8 * i) % kRows);
  sync_warp();  // the norms are for the whole warp
  return facts;
}

// use(shift, inverse norm) for every shift of a row.
template <int kColumns, typename Use>
__device__ __forceinline__ void for_shifts(const float* norms, Use use) {
  if constexpr (kColumns % 4 == 0) {
#pragma unroll
    for (int s = 0; s < kColumns; s += 4) {
      const float4 four = load_vector<float4>(norms + s);
      use(s, four.x), use(s + 1, four.y), use(s + 2, four.z), use(s + 3, four.w);
    }
  } else {
#pragma unroll
    for (int s = 0; s < kColumns; ++s) use(s, norms[s]);
  }
}

// Bounds of a pair from its correlations, as in strip_topk.h.
template <int kColumns>
__device__ __forceinline__ void pair_bounds(const float (&c)[kColumns], const float* norms, float error, bool cosine,
                                            float* lower, float* upper) {
  float top = c[0];
#pragma unroll
  for (int s = 1; s < kColumns; ++s) top = fmaxf(top, c[s]);
  const float cut = top - 2.0f * error;
  float low = cosine ? -kInfinite : kInfinite, high = -kInfinite;
  for_shifts<kColumns>(norms, [&](int s, float norm) {
    const float at_least = (c[s] - error) * norm, at_most = (c[s] + error) * norm;
    if (cosine) {
      low = fmaxf(low, at_least);
      high = fmaxf(high, at_most);
    } else if (c[s] >= cut) {
      low = fminf(low, at_least);
      high = fmaxf(high, at_most);
    }
  });
  *lower = low - kScreenSlack;
  *upper = high + kScreenSlack;
}

// A pair of a lane, by its correlations, of row g or g + 8 and query 2t or 2t + 1 of a tile: tests it, and puts it on a
// list if it may matter.
template <int kColumns>
__device__ __forceinline__ void finish_pair(const TopkWork& work, const ScreenShared& layout, const BlockFacts& facts,
                                            int64_t block, int half, int tile, int tile_of_warp, int64_t slot,
                                            int eight, int odd, const float (&c)[kColumns]) {
  const int g = lane_id() / 4, t = lane_id() % 4, row = g + 8 * eight;
  const int query = tile_of_warp * kTileQueries + 2 * t + odd;
  const int64_t query_slot = static_cast<int64_t>(tile) * kTileQueries + 2 * t + odd;
  const float* norms = layout.norms + row * norm_pitch(kColumns);
  const float error = work.epsilon[query_slot] * facts.norm[eight];
  // (c + e) times the norm, not less than what pair_bounds finds.
  float bound = -kInfinite;
  for_shifts<kColumns>(norms, [&](int s, float norm) { bound = fmaxf(bound, (c[s] + error) * norm); });
  const float threshold = layout.thresholds[query];
  const bool sight = facts.sight >> row & 1u;
  bool hit = (facts.valid >> row & 1u) && threshold < kInfinite && (sight || bound + kScreenSlack >= threshold);
  if (!any(hit)) return;
  float lower = -kInfinite, upper = kInfinite;
  if (hit && !sight) {
    pair_bounds(c, norms, error, work.p.cosine, &lower, &upper);
    hit = upper >= threshold;
  }
  // Lanes of the same t have the same query, in the order of their strips.
  const uint32_t same = ballot(hit) & 0x11111111u << t;
  const int32_t at = layout.counts[query];
  sync_warp();
  if (hit) {
    Kept& entry = list_of(work, query_slot, slot)[at + __popc(same & ((1u << lane_id()) - 1u))];
    entry.row = block * kStripLanes + strip_of<kColumns>(row, half);
    entry.lower = lower;
    entry.upper = upper;
    entry.shift = -1;
    entry.scored = 0;
  }
  if (g == 0) layout.counts[query] = at + __popc(same);
  sync_warp();
}

// The correlations of one pair, sum[plane][pair].
template <int kColumns>
__device__ __forceinline__ void correlations(const float (&sum)[kColumns][4], int pair, float (&c)[kColumns]) {
  if constexpr (kColumns == 1) {
    c[0] = sum[0][pair];
  } else {
    float re[kColumns / 2 + 1], im[kColumns / 2 + 1];
    re[0] = sum[0][pair];
    re[kColumns / 2] = sum[kColumns - 1][pair];
#pragma unroll
    for (int f = 1; f < kColumns / 2; ++f) re[f] = sum[2 * f - 1][pair], im[f] = sum[2 * f][pair];
    inverse_fixed<kColumns, float>(re, im, c, 1);
  }
}

// All four pairs of a lane.
template <int kColumns>
__device__ __forceinline__ void finish_pairs(const TopkWork& work, const ScreenShared& layout, const BlockFacts& facts,
                                             int64_t block, int tile, int tile_of_warp, int64_t slot,
                                             const float (&sum)[kColumns][4]) {
#pragma unroll
  for (int pair = 0; pair < 4; ++pair) {
    float c[kColumns];
    correlations(sum, pair, c);
    finish_pair(work, layout, facts, block, 0, tile, tile_of_warp, slot, pair / 2, pair % 2, c);
  }
}

// The same for half the frequencies of twice the columns. The even ones are those of a circle of half the length. The
// odd ones, whose first lies in the first and the last plane, give the first half of the circle.
template <int kHalf, int kPlanes>
__device__ __forceinline__ void half_correlations(const float (&sum)[kPlanes][4], int pair, float (&c)[kPlanes]) {
  if constexpr (kHalf == 0) {
    correlations(sum, pair, c);
  } else {
    float re[kPlanes / 2], im[kPlanes / 2];
    re[0] = sum[0][pair], im[0] = sum[kPlanes - 1][pair];
#pragma unroll
    for (int i = 1; i < kPlanes / 2; ++i) re[i] = sum[2 * i - 1][pair], im[i] = sum[2 * i][pair];
    inverse_odd<2 * kPlanes, float>(re, im, c, 1);
  }
}

// One pair's values on a desk: a place that this lane and the same lane of the partner have to themselves.
template <int kPlanes>
__device__ __forceinline__ void store_pair(float* desk, const float (&c)[kPlanes]) {
#pragma unroll
  for (int s = 0; s < kPlanes; s += 4)
    store_vector(desk + 32 * s + 4 * lane_id(), make_float4(c[s], c[s + 1], c[s + 2], c[s + 3]));
}
// The whole circle from this warp's half, `sign` 1 for the even frequencies and -1 for the odd, and the partner's.
template <int kPlanes>
__device__ __forceinline__ void join_pair(const float* desk, const float (&kept)[kPlanes], float sign,
                                          float (&c)[2 * kPlanes]) {
#pragma unroll
  for (int s = 0; s < kPlanes; s += 4) {
    const float4 four = load_vector<float4>(desk + 32 * s + 4 * lane_id());
    const float other[4] = {four.x, four.y, four.z, four.w};
    for (int i = 0; i < 4; ++i) {
      c[s + i] = kept[s + i] + other[i];
      c[kPlanes + s + i] = sign * (kept[s + i] - other[i]);
    }
  }
}

// Of a lane's four pairs the warp with the even frequencies keeps the two of strip 2g, the other those of strip 2g + 1.
template <int kHalf, int kPlanes>
__device__ __forceinline__ void share_pairs(const float (&sum)[kPlanes][4], float* desk, float (&given)[kPlanes],
                                            float (&kept)[2][kPlanes]) {
  half_correlations<kHalf>(sum, 2 - 2 * kHalf, given);
  store_pair(desk, given);
  half_correlations<kHalf>(sum, 3 - 2 * kHalf, given);
  half_correlations<kHalf>(sum, 2 * kHalf, kept[0]);
  half_correlations<kHalf>(sum, 2 * kHalf + 1, kept[1]);
}

// A bank block after the other through the ring; see the head of this file and strip_topk_heuristics.h.
template <int kColumns, int kTiles, bool kBf16>
__global__ void __launch_bounds__(32 * kScreenWarps, 1)
    strip_topk_screen_kernel(const __grid_constant__ TopkWork work) {
  constexpr int kSplit = screen_split(kColumns), kPlanes = kColumns / kSplit, kStages = screen_stages(kColumns);
  const StripTopkParams& p = work.p;
  const TopkPlan& plan = work.plan;
  const StripBankView& bank = p.bank;
  const ScreenShared layout = screen_layout<kColumns, kTiles>(plan);
  const int lane = lane_id(), warp = static_cast<int>(threadIdx.x / 32), half = warp % kSplit;
  const int deep = warp / kSplit % plan.blocks_deep, across = warp / kSplit / plan.blocks_deep;
  const int tiles = static_cast<int>(plan.tiles), group_tiles = kTiles * plan.tiles_across;
  const int groups = (tiles + group_tiles - 1) / group_tiles;
  const int steps = static_cast<int>(plan.steps), words = static_cast<int>(bank.words);
  const int32_t units = unit_count<kColumns>(bank);
  const int64_t blocks = (bank.count + kStripLanes - 1) / kStripLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * plan.blocks_deep;
  const int64_t first_block = static_cast<int64_t>(blockIdx.x) * plan.blocks_deep;
  const int64_t slot = (first_block + deep) * kSplit + half;

  for (int group = static_cast<int>(blockIdx.y); group < groups; group += static_cast<int>(gridDim.y)) {
    const int first_tile = group * group_tiles, warp_tile = first_tile + across * kTiles;
    // Operands: tiles past the last one are not read, and have no queries.
    const int tile_words = kColumns * steps * 64;
    const uint32_t* from_operands = work.operands + static_cast<int64_t>(first_tile) * tile_words;
    for (int i = static_cast<int>(threadIdx.x); i < group_tiles * tile_words / 4; i += static_cast<int>(blockDim.x))
      copy_async16(layout.operands + 4 * i, from_operands + 4 * i, first_tile + 4 * i / tile_words < tiles);
    copy_async_commit();
    const int width = warp_tile < tiles ? work.tile_width[warp_tile] : 0;  // of all its tiles
    for (int i = lane; i < kTiles * kTileQueries; i += 32) {
      const int64_t query_slot = static_cast<int64_t>(warp_tile) * kTileQueries + i;
      const bool live = warp_tile + i / kTileQueries < tiles && work.slot_query[query_slot] >= 0;
      layout.thresholds[i] = live ? -kInfinite : kInfinite;
      layout.counts[i] = 0;
    }
    sync_warp();

    // Counters, not divisions: this runs for every 4 KiB.
    int32_t fetch_unit = 0, fetch_stage = 0, stage = 0;
    int64_t fetch_block = first_block;
    auto fetch = [&] {
      int64_t begin;
      int32_t bytes;
      unit_range<kColumns>(bank, fetch_unit, &begin, &bytes);
      uint8_t* to = layout.ring + fetch_stage * plan.blocks_deep * plan.unit_bytes;
      for (int m = 0; m < plan.blocks_deep && fetch_block + m < blocks; ++m, to += plan.unit_bytes) {
        const uint8_t* from = bank.blocks + (fetch_block + m) * bank.block_bytes + begin;
        for (int32_t at = 16 * threadIdx.x; at < bytes; at += 16 * blockDim.x)
          copy_async16(to + in_ring(at), from + at);
      }
      copy_async_commit();
      fetch_stage = fetch_stage + 1 < kStages ? fetch_stage + 1 : 0;
      if (++fetch_unit == units) fetch_unit = 0, fetch_block += stride;
    };
    // The next unit has landed for the whole block, and the place of the one before it is free.
    auto arrive = [&] {
      copy_async_wait<kStages - 2>();
      sync_block();
      fetch();
      const uint8_t* unit = layout.ring + (stage * plan.blocks_deep + deep) * plan.unit_bytes;
      stage = stage + 1 < kStages ? stage + 1 : 0;
      return unit;
    };
    for (int i = 0; i < kStages - 1; ++i) fetch();

    const uint32_t* operands = layout.operands + across * kTiles * tile_words;
    for (int64_t at = first_block; at < blocks; at += stride) {
      const int64_t block = at + deep;
      // What other slots have proven, asked for early.
      constexpr int kLooks = (kTiles * kTileQueries + 31) / 32;
      uint32_t proven[kLooks] = {};
      for (int i = 0; i < kLooks; ++i)
        if (lane + 32 * i < kTiles * kTileQueries && warp_tile + (lane + 32 * i) / kTileQueries < tiles)
          proven[i] = load_changing(work.proven + static_cast<int64_t>(warp_tile) * kTileQueries + lane + 32 * i);
      auto look = [&](const uint8_t* unit, int line) {
        if (block >= blocks || width == 0) return BlockFacts{};
        for (int i = 0; i < kLooks; ++i)
          if (proven[i] != 0) {
            float& threshold = layout.thresholds[lane + 32 * i];
            threshold = fmaxf(threshold, from_ordered(proven[i]));
          }
        return look_at_block<kColumns>(p, block, half, unit, line, width, layout.norms);
      };
      BlockFacts facts;
      if constexpr (kColumns == 1) {
        float sum[kTiles][1][4] = {};
        const uint8_t* unit = nullptr;
        for (int32_t u = 0; u < units; ++u) {
          unit = arrive();
          const int here = words - u * kFlatWords < kFlatWords ? words - u * kFlatWords : kFlatWords;
          const uint8_t* strips = lane_strips(unit, 0);
          for (int step = 0; 8 * step < here; ++step) {
            uint32_t a[4], b[2];
            load_strips(a, strips, step, here);
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
              load_queries(b, operands + i * tile_words, u * (kFlatWords / 8) + step);
              mma_step<kBf16>(sum[i][0], a, b);
            }
          }
        }
        facts = look(unit, words - (units - 1) * kFlatWords);
        if (facts.valid == 0) continue;
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          if (warp_tile + i < tiles) finish_pairs(work, layout, facts, block, warp_tile + i, i, slot, sum[i]);
      } else {
        static_assert(kTiles == 1, "the planes of two tiles fit no lane");
        float sum[kPlanes][4] = {};
        const uint8_t* unit = arrive();
        facts = look(unit, words);
        if (half == 0) real_product<kBf16>(sum[kPlanes - 1], unit, 0, operands, kColumns - 1, steps, words);
        unit = arrive();
        if (half == 0)
          real_product<kBf16>(sum[0], unit, 0, operands, 0, steps, words);
        else
          complex_product<kBf16>(sum[0], sum[kPlanes - 1], unit, words, operands, 1, steps, words);
#pragma unroll
        for (int i = 1; i < kPlanes / 2; ++i) {
          unit = arrive();
          complex_product<kBf16>(sum[2 * i - 1], sum[2 * i], unit, 2 * half * words, operands,
                                 2 * (kSplit * i + half) - 1, steps, words);
        }
        if constexpr (kSplit == 1) {
          if (facts.valid == 0) continue;
          finish_pairs(work, layout, facts, block, warp_tile, 0, slot, sum);
        } else {
          const float sign = half == 0 ? 1.0f : -1.0f;
          float given[kPlanes], kept[2][kPlanes], c[kColumns];
          if (half == 0)
            share_pairs<0>(sum, layout.desk, given, kept);
          else
            share_pairs<1>(sum, layout.desk, given, kept);
          sync_block();
          join_pair(layout.partner, kept[0], sign, c);
          store_pair(layout.partner, given);  // where this lane has just read
          sync_block();
          if (facts.valid == 0) continue;
          finish_pair(work, layout, facts, block, half, warp_tile, 0, slot, 0, 0, c);
          join_pair(layout.desk, kept[1], sign, c);
          finish_pair(work, layout, facts, block, half, warp_tile, 0, slot, 0, 1, c);
        }
      }
      for (int i = 0; i < kTiles * kTileQueries; ++i) {
        const int32_t count = layout.counts[i];
        if (count <= plan.list - kStripLanes) continue;
        const int32_t left = make_room<kColumns>(work, static_cast<int64_t>(warp_tile) * kTileQueries + i, slot, count,
                                                 kStripLanes, layout.thresholds + i);
        if (lane == 0) layout.counts[i] = left;
        sync_warp();
      }
    }
    copy_async_wait<0>();
    for (int i = lane; i < kTiles * kTileQueries; i += 32)
      if (warp_tile + i / kTileQueries < tiles)
        work.count[(static_cast<int64_t>(warp_tile) * kTileQueries + i) * plan.slots + slot] = layout.counts[i];
    sync_block();
  }
}

// ---------------------------------------------------------------------------------------------------------------
// From the lists to the answer.

constexpr int kSelectThreads = 256;

struct SelectShared {
  uint32_t counts[256];
  uint32_t wanted, digit, found;
};

// Calls use(entry) for all entries of a query, spread over the threads of the block.
template <typename Use>
__device__ __forceinline__ void for_entries(const TopkWork& work, int64_t query_slot, Use use) {
  const int64_t warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int64_t slot = warp; slot < work.plan.slots; slot += warps) {
    const int32_t count = work.count[query_slot * work.plan.slots + slot];
    const Kept* list = list_of(work, query_slot, slot);
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
__global__ void __launch_bounds__(kSelectThreads, 1) strip_topk_select_kernel(const __grid_constant__ TopkWork work) {
  SelectShared& box = shared<SelectShared>();
  for (int64_t b = blockIdx.x; b < work.p.batch; b += gridDim.x) {
    const int64_t query_slot = work.slot_of[b];
    if (query_slot < 0) continue;
    const uint32_t wanted = static_cast<uint32_t>(work.p.k < 0x7fffffff ? work.p.k : 0x7fffffff);
    // A scored NaN has no rank; an unscored lower bound is a number.
    const uint32_t known = select_largest<uint32_t>(
        work, query_slot, wanted, box, [](const Kept& entry) { return entry.lower == entry.lower; },
        [](const Kept& entry) { return ordered(entry.lower); });
    const uint32_t ties = box.wanted;
    sync_block();
    const uint64_t row = select_largest<uint64_t>(
        work, query_slot, ties, box, [=](const Kept& entry) { return entry.scored && ordered(entry.lower) == known; },
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

// The k best of the scored, by score and then row.
__global__ void __launch_bounds__(kSelectThreads, 1) strip_topk_answer_kernel(const __grid_constant__ TopkWork work) {
  SelectShared& box = shared<SelectShared>();
  const int64_t k = work.p.k;
  auto is_scored = [](const Kept& entry) { return entry.scored && entry.lower == entry.lower; };
  auto score_key = [](const Kept& entry) { return ordered(entry.lower); };
  for (int64_t b = blockIdx.x; b < work.p.batch; b += gridDim.x) {
    const int64_t query_slot = work.slot_of[b];
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
      const Kept entry = present ? best[i] : Kept{-1, -kInfinite, -kInfinite, -1, 0};
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
