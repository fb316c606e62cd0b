// strip_topk: from the queries to lists of pairs that may belong to the answer.
// SPDX-License-Identifier: Apache-2.0
//
//   order     queries into tiles of one width; those with NaN or Inf into none
//   operands  planes of the normalised queries, rounded to what the tensor cores take, in their register layout
//   screen    every pair of the bank against the threshold of its query
//
// An mma takes 16 strips as the rows of a: row g is strip 2g and row g + 8 strip 2g + 1, so that a lane reads both in
// one 8-byte load and a warp reads 4 lines of 64 bytes, without bank conflicts (in_ring). k runs over the words: a bf16
// word holds two channels as the mma wants them, an fp32 word one tf32. In lane l, with g = l / 4, t = l % 4:
// words t and t + 4 of a step, strips 2g and 2g + 1, and of the sums: queries 2t and 2t + 1 with these two strips.
#pragma once
#include "cuda/strip_topk_lists.cuh"

namespace geoloc_fast::cuda {

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

constexpr int kRunThreads = 256;

// longest: the rows of the largest group, each counted by the thread that finds its first row.
__global__ void __launch_bounds__(kRunThreads) strip_topk_runs_kernel(const __grid_constant__ TopkWork work) {
  const int64_t* group = work.p.group;
  const int64_t count = work.p.bank.count, step = static_cast<int64_t>(gridDim.x) * kRunThreads;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x; r < count; r += step) {
    if (r > 0 && group[r - 1] == group[r]) continue;
    int64_t within = r, beyond = count;  // the last row known to be of the group, the first known not to be
    while (within + 1 < beyond) {
      const int64_t middle = within + (beyond - within) / 2;
      (group[middle] == group[r] ? within : beyond) = middle;
    }
    const int64_t rows = beyond - r;
    atomic_max(work.longest, static_cast<uint32_t>(rows < 0x7fffffff ? rows : 0x7fffffff));
  }
}

constexpr int kOperandWarps = 16;

template <int kColumns>
struct OperandShared {
  double wave[kOperandWarps][kColumns];  // of the plane that a warp makes, over the columns
  double residual[kColumns];             // |plane - what is left of it after rounding|^2
};

// A block a query slot, a warp a plane. The planes are sums over the columns that exist; their float64 error is far
// below what epsilon is rounded by.
template <int kColumns>
__global__ void __launch_bounds__(32 * kOperandWarps, 1)
    strip_topk_operands_kernel(const __grid_constant__ TopkWork work) {
  const StripTopkParams& p = work.p;
  OperandShared<kColumns>& box = shared<OperandShared<kColumns>>();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = lane_id(), per_word = p.bank.bf16 ? 2 : 1;
  const int steps = static_cast<int>(work.plan.steps), words = 8 * steps, slots = static_cast<int>(work.plan.tiles) * 8;
  const int padded = static_cast<int>(p.padded_width);
  static_assert(kTileQueries == 8 && (kColumns & (kColumns - 1)) == 0, "");
  for (int slot = static_cast<int>(blockIdx.x); slot < slots; slot += static_cast<int>(gridDim.x)) {
    const int64_t b = work.slot_query[slot];
    const int width = b < 0 ? 0 : static_cast<int>(width_of(p.width, b, p.padded_width));
    const double energy = b < 0 ? 0.0 : work.energy[b], scale = energy > 0.0 ? 1.0 / sqrt(energy) : 0.0;
    const float* query = p.query + (b < 0 ? 0 : b) * p.bank.values * p.padded_width;
    uint32_t* operands = work.operands + (static_cast<int64_t>(slot / 8) * kColumns * steps * 32 + slot % 8 * 4) * 2;
    for (int plane = warp; plane < kColumns; plane += kOperandWarps) {
      const int frequency = (plane + 1) / 2;
      const bool ends = plane == 0 || (kColumns > 1 && plane == kColumns - 1), sine = !ends && plane % 2 == 0;
      const double factor = scale * (ends ? plane_ends(kColumns) : plane_middle(kColumns));
      double* wave = box.wave[warp];
      for (int x = lane; x < width; x += 32) {
        const int at = frequency * x % kColumns;
        wave[x] = sine ? -p.circle[kColumns + at] : p.circle[at];
      }
      sync_warp();
      double residual = 0.0;
      for (int word = lane; word < words; word += 32) {
        uint32_t bits = 0;
        for (int j = 0; j < per_word; ++j) {
          const int64_t c = static_cast<int64_t>(word) * per_word + j;
          double sum = 0.0;
          if (c < p.bank.values) {
            const float* values = query + c * padded;
            for (int x = 0; x < width; ++x) sum += static_cast<double>(values[x]) * wave[x];
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
        operands[((plane * steps + word / 8) * 32 + word % 4) * 2 + word % 8 / 4] = bits;
      }
      residual = warp_sum(residual);
      if (lane == 0) box.residual[plane] = residual;
      sync_warp();  // the wave has been read
    }
    sync_block();
    if (threadIdx.x == 0) {
      double residual = 0.0;
      for (int plane = 0; plane < kColumns; ++plane) residual += box.residual[plane];
      QueryBound bound{scale == 0.0 ? 0.0f : work.plan.epsilon + static_cast<float>(1.1 * sqrt(residual)), 1.0f};
      if (p.dot) {
        bound.epsilon += kScreenSlack;
        bound.scale = static_cast<float>(sqrt(energy));
        // Nothing is known: every pair is scored.
        if (energy != 0.0 && !(energy > 0x1p-200 && energy < 0x1p200)) bound = {kInfinite, 1.0f};
      }
      work.bound[slot] = bound;
    }
    sync_block();
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
__device__ __forceinline__ int32_t unit_count(int32_t words) {
  return kColumns == 1 ? (words + kFlatWords - 1) / kFlatWords : kColumns / screen_split(kColumns) / 2 + 1;
}
template <int kColumns>
__device__ __forceinline__ void unit_range(int32_t words, int32_t unit, int64_t* begin, int32_t* bytes) {
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
template <typename Words>
__device__ __forceinline__ void load_strips(uint32_t (&a)[4], const uint8_t* strips, int step, Words words) {
  const int word = step * 8 + lane_id() % 4;
  const uint2 none = make_uint2(0, 0);
  const uint2 low = words.holds(word) ? load_vector<uint2>(strips + step * 512) : none;
  const uint2 high = words.holds(word + 4) ? load_vector<uint2>(strips + step * 512 + 256) : none;
  a[0] = low.x, a[1] = low.y, a[2] = high.x, a[3] = high.y;
}
__device__ __forceinline__ void load_queries(uint32_t (&b)[2], const uint32_t* operands, int at) {
  const uint2 words = load_vector<uint2>(operands + (at * 32 + lane_id()) * 2);
  b[0] = words.x, b[1] = words.y;
}

// How many words a plane has, and how many steps of an mma.
template <int kWords>
struct FixedWords {  // a multiple of 8: every step is whole
  __device__ __forceinline__ constexpr int count() const { return kWords; }
  __device__ __forceinline__ constexpr int steps() const { return kWords / 8; }
  __device__ __forceinline__ constexpr bool holds(int) const { return true; }
};
template <>
struct FixedWords<0> {  // as the bank has it
  int words;
  __device__ __forceinline__ int count() const { return words; }
  __device__ __forceinline__ int steps() const { return (words + 7) / 8; }
  __device__ __forceinline__ bool holds(int word) const { return word < words; }
};
template <int kWords>
__device__ __forceinline__ FixedWords<kWords> words_of(const StripBankView& bank) {
  if constexpr (kWords == 0)
    return {static_cast<int>(bank.words)};
  else
    return {};
}

// A plane that is real by nature (frequency 0, W/2): its product with the queries' plane.
template <bool kBf16, typename Words>
__device__ __forceinline__ void real_product(float (&sum)[4], const uint8_t* unit, int line, const uint32_t* operands,
                                             int plane, Words words) {
  const uint8_t* strips = lane_strips(unit, line);
#pragma unroll
  for (int step = 0; step < words.steps(); ++step) {
    uint32_t a[4], b[2];
    load_strips(a, strips, step, words);
    load_queries(b, operands, plane * words.steps() + step);
    mma_step<kBf16>(sum, a, b);
  }
}

// A frequency whose planes begin at `line` of the unit and at `plane` of the operands: strips times the queries'
// conjugate.
template <bool kBf16, typename Words>
__device__ __forceinline__ void complex_product(float (&re)[4], float (&im)[4], const uint8_t* unit, int line,
                                                const uint32_t* operands, int plane, Words words) {
  const uint8_t *strips = lane_strips(unit, line), *strips_im = lane_strips(unit, line + words.count());
  const int steps = words.steps();
#pragma unroll
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
    if (p.dot) {
      mine[part + i * kParts] = 1.0f;
      continue;
    }
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
                                            float scale, float slack, float* lower, float* upper) {
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
  *lower = low * scale - slack;
  *upper = high * scale + slack;
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
  const QueryBound known = work.bound[query_slot];
  const float error = known.epsilon * facts.norm[eight], slack = work.p.dot ? 0.0f : kScreenSlack;
  // (c + e) times the norm, not less than what pair_bounds finds.
  float bound = -kInfinite;
  for_shifts<kColumns>(norms, [&](int s, float norm) { bound = fmaxf(bound, (c[s] + error) * norm); });
  const float threshold = layout.thresholds[query];
  const bool sight = facts.sight >> row & 1u;
  bool hit = (facts.valid >> row & 1u) && threshold < kInfinite && (sight || bound * known.scale + slack >= threshold);
  if (!any(hit)) return;
  float lower = -kInfinite, upper = kInfinite;
  if (hit && !sight) {
    pair_bounds(c, norms, error, work.p.cosine || work.p.dot, known.scale, slack, &lower, &upper);
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
    entry.scored = entry.head = 0;
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
// `kWords` of a plane, 0: as the bank has it. Written out, the products are one straight line.
template <int kColumns, int kTiles, bool kBf16, int kWords>
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
  const auto words = words_of<kWords>(bank);
  const int steps = words.steps();
  const int32_t units = unit_count<kColumns>(words.count());
  const int64_t blocks = (bank.count + kStripLanes - 1) / kStripLanes;
  const int threads = static_cast<int>(blockDim.x), blocks_deep = plan.blocks_deep;
  const int unit_bytes = static_cast<int>(plan.unit_bytes), stage_bytes = blocks_deep * unit_bytes;
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

    // Counters, not divisions or products: this runs for every 4 KiB.
    int32_t fetch_unit = 0, fetch_stage = 0, stage = 0;
    int64_t fetch_block = first_block;
    const uint8_t* fetch_from = bank.blocks + first_block * bank.block_bytes;
    auto fetch = [&] {
      int64_t begin;
      int32_t bytes;
      unit_range<kColumns>(words.count(), fetch_unit, &begin, &bytes);
      uint8_t* to = layout.ring + fetch_stage * stage_bytes;
      const uint8_t* from = fetch_from + begin;
      for (int m = 0; m < blocks_deep && fetch_block + m < blocks; ++m, to += unit_bytes, from += bank.block_bytes)
        for (int32_t at = 16 * static_cast<int32_t>(threadIdx.x); at < bytes; at += 16 * threads)
          copy_async16(to + in_ring(at), from + at);
      copy_async_commit();
      fetch_stage = fetch_stage + 1 < kStages ? fetch_stage + 1 : 0;
      if (++fetch_unit == units) fetch_unit = 0, fetch_block += stride, fetch_from += stride * bank.block_bytes;
    };
    // The next unit has landed for the whole block, and the place of the one before it is free.
    auto arrive = [&] {
      copy_async_wait<kStages - 2>();
      sync_block();
      fetch();
      const uint8_t* unit = layout.ring + stage * stage_bytes + deep * unit_bytes;
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
          const int left = words.count() - u * kFlatWords;
          const FixedWords<0> here{left < kFlatWords ? left : kFlatWords};
          const uint8_t* strips = lane_strips(unit, 0);
          for (int step = 0; step < here.steps(); ++step) {
            uint32_t a[4], b[2];
            load_strips(a, strips, step, here);
#pragma unroll
            for (int i = 0; i < kTiles; ++i) {
              load_queries(b, operands + i * tile_words, u * (kFlatWords / 8) + step);
              mma_step<kBf16>(sum[i][0], a, b);
            }
          }
        }
        facts = look(unit, words.count() - (units - 1) * kFlatWords);
        if (facts.valid == 0) continue;
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          if (warp_tile + i < tiles) finish_pairs(work, layout, facts, block, warp_tile + i, i, slot, sum[i]);
      } else {
        static_assert(kTiles == 1, "the planes of two tiles fit no lane");
        float sum[kPlanes][4] = {};
        const uint8_t* unit = arrive();
        facts = look(unit, words.count());
        if (half == 0) real_product<kBf16>(sum[kPlanes - 1], unit, 0, operands, kColumns - 1, words);
        unit = arrive();
        if (half == 0)
          real_product<kBf16>(sum[0], unit, 0, operands, 0, words);
        else
          complex_product<kBf16>(sum[0], sum[kPlanes - 1], unit, words.count(), operands, 1, words);
#pragma unroll
        for (int i = 1; i < kPlanes / 2; ++i) {
          unit = arrive();
          complex_product<kBf16>(sum[2 * i - 1], sum[2 * i], unit, 2 * half * words.count(), operands,
                                 2 * (kSplit * i + half) - 1, words);
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
    for (int i = 0; p.group != nullptr && i < kTiles * kTileQueries; ++i)
      if (warp_tile + i / kTileQueries < tiles)
        mark_heads(p.group, list_of(work, static_cast<int64_t>(warp_tile) * kTileQueries + i, slot), layout.counts[i]);
    for (int i = lane; i < kTiles * kTileQueries; i += 32)
      if (warp_tile + i / kTileQueries < tiles)
        work.count[(static_cast<int64_t>(warp_tile) * kTileQueries + i) * plan.slots + slot] = layout.counts[i];
    sync_block();
  }
}

}  // namespace geoloc_fast::cuda
