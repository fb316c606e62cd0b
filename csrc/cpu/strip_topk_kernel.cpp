// Screening: approximate scores of all pairs, with a bound (see strip_topk.h). Nothing here decides an answer.
// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>

#include "common/azimuth_transform.h"
#include "common/half.h"
#include "cpu/simd.h"
#include "cpu/strip_topk_screen.h"

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

// Lanes in one register. A block is worked through in 16 / kLanes parts.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Lanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef float Lanes_in_memory __attribute__((vector_size(4 * kLanes), may_alias));
typedef uint32_t Words_in_memory __attribute__((vector_size(4 * kLanes), may_alias));
typedef double f64x8 __attribute__((vector_size(64)));

// Tile sizes, by what the registers hold: a tile of queries times a number of blocks takes three sums each (one if
// there is a single plane, "flat"). With 32 registers two blocks share every broadcast of a query's value, which
// takes loads out of the way of the multipliers; dot products have fewer operands to load and need no sharing.
constexpr int kMostBlocks = kLanes == kStripLanes ? 2 : 1, kMostQueries = 8;
constexpr int most_blocks(Products products, bool flat) {
  return products == Products::kBf16Dot && !flat ? 1 : kMostBlocks;
}
constexpr int most_queries(Products products, bool flat) { return products == Products::kBf16Dot || flat ? 8 : 4; }
static_assert(kLanes == kStripLanes || kMostBlocks == 1, "a query's rows come in ascending order");

// Queries of the tile that begins at query `first` of `live`: a power of two.
int64_t tile_at(Products products, int64_t columns, int64_t first, int64_t live) {
  int64_t tile = most_queries(products, columns == 1);
  while (tile > live - first) tile /= 2;
  return tile;
}

GEOLOC_FAST_INLINE Lanes load(const float* from) { return *reinterpret_cast<const Lanes_in_memory*>(from); }
GEOLOC_FAST_INLINE Words load(const uint32_t* from) { return *reinterpret_cast<const Words_in_memory*>(from); }
GEOLOC_FAST_INLINE void store(float* to, Lanes value) { *reinterpret_cast<Lanes_in_memory*>(to) = value; }
// value - 0 is value for every float, so that only a broadcast is left of it.
GEOLOC_FAST_INLINE Lanes all(float value) { return value - Lanes{}; }
GEOLOC_FAST_INLINE Lanes pick(decltype(Lanes{} < Lanes{}) where, Lanes yes, Lanes no) { return where ? yes : no; }

// max(a, b), b where either is NaN. (The forms with a full mask spare GCC 12 a false warning.)
GEOLOC_FAST_INLINE Lanes highest(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes>(_mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes>(_mm256_max_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b)));
#elif defined(__SSE__)
  return reinterpret_cast<Lanes>(_mm_max_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b)));
#else
  return pick(a > b, a, b);
#endif
}

// Bit i is set where a[i] >= b[i].
GEOLOC_FAST_INLINE uint32_t at_least(Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GE_OQ);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), _CMP_GE_OQ)));
#elif defined(__SSE__)
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpge_ps(reinterpret_cast<__m128>(a), reinterpret_cast<__m128>(b))));
#else
  uint32_t mask = 0;
  for (int i = 0; i < kLanes; ++i) mask |= static_cast<uint32_t>(a[i] >= b[i]) << i;
  return mask;
#endif
}

GEOLOC_FAST_INLINE Lanes square_root(Lanes a) {
#if defined(__AVX512F__)
  return reinterpret_cast<Lanes>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(a)));
#elif defined(__AVX2__)
  return reinterpret_cast<Lanes>(_mm256_sqrt_ps(reinterpret_cast<__m256>(a)));
#elif defined(__SSE__)
  return reinterpret_cast<Lanes>(_mm_sqrt_ps(reinterpret_cast<__m128>(a)));
#else
  for (int i = 0; i < kLanes; ++i) a[i] = std::sqrt(a[i]);
  return a;
#endif
}

// ---------------------------------------------------------------------------------------------------------------
// What comes next is fetched from memory while this is worked on. Where one tile of queries goes over a block, a sweep
// asks, with every line that it reads, for the one kAskAhead further: many at once would hold up the reads. Where
// several do, every sweep begins by asking for its share of the next block, which goes to the second-level cache.
// Beyond the end of a bank the processor ignores the wish.
constexpr int64_t kAskAhead = 8192;
struct Ahead {
  bool line_by_line;
  const uint8_t* next;
  const uint8_t* end;
  int64_t lines;  // a sweep's share
};

template <int kCacheLevel>
GEOLOC_FAST_INLINE void ask_for(const void* from, int64_t line, int64_t distance) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + 64 * line + distance), 0,
                     4 - kCacheLevel);
}

// A number that a lambda can be compiled for.
template <int kValue>
struct Number {
  constexpr operator int() const { return kValue; }
};

// sweep(asks): what asks line by line is compiled apart.
template <typename Sweep>
GEOLOC_FAST_INLINE void ahead_of(Ahead& ahead, const Sweep& sweep) {
  if (ahead.line_by_line) return sweep(Number<1>{});
  for (int64_t i = 0; i < ahead.lines && ahead.next < ahead.end; ++i, ahead.next += 64) ask_for<2>(ahead.next, 0, 0);
  sweep(Number<0>{});
}

// ---------------------------------------------------------------------------------------------------------------
// A block and what does not depend on the query's values: which lanes count, and the window norms of one width.

struct BlockState {
  const uint8_t* data;
  int64_t block;
  uint32_t valid;                        // strips that exist, are alive, and can have a score
  uint32_t wild;                         // of these: outside the range the bound holds for
  uint32_t zero;                         // of these: hold nothing but zeros
  int64_t width;                         // that inverse_norm stands for; 0: none yet
  uint32_t unsure;                       // lanes with a window whose energy is too near the least that counts
  alignas(64) float norm[kStripLanes];   // |S|, rounded up
  alignas(64) float total[kStripLanes];  // |S|^2
  alignas(64) float reach[kStripLanes];  // |S| times the largest inverse norm
  float* inverse_norm;                   // [W][16]: 1 / |window|, and 0 where the window's energy does not count
  float* sums;                           // [2][W][16]
};

uint32_t word_kinds(const StripBankView& bank, const uint8_t* data, uint32_t lanes, uint32_t* zero) {
  uint32_t any[kStripLanes] = {}, broken = 0;
  for (int64_t i = 0; i < bank.columns * bank.words; ++i)
    for (int lane = 0; lane < kStripLanes; ++lane) {
      uint32_t word;
      std::memcpy(&word, data + (i * kStripLanes + lane) * 4, sizeof word);
      any[lane] |= word & (bank.bf16 ? 0x7fff7fffu : 0x7fffffffu);
      const bool high = (word & 0x7f800000u) == 0x7f800000u, low = (word & 0x7f80u) == 0x7f80u;
      broken |= static_cast<uint32_t>(high || (bank.bf16 && low)) << lane;
    }
  *zero = 0;
  for (int lane = 0; lane < kStripLanes; ++lane) *zero |= static_cast<uint32_t>(any[lane] == 0) << lane;
  *zero &= lanes;
  return broken & lanes;
}

__attribute__((noinline)) void open_block(const ScreenJob& job, int64_t block, int64_t stride, BlockState& state) {
  const StripBankView& bank = job.bank;
  state.data = bank.blocks + block * bank.block_bytes;
  state.block = block;
  state.width = 0;
  state.valid = state.wild = state.zero = 0;
  const int64_t left = bank.count - block * kStripLanes;
  for (int lane = 0; lane < kStripLanes && lane < left; ++lane)
    if (job.alive == nullptr || job.alive[block * kStripLanes + lane]) state.valid |= 1u << lane;
  if (state.valid == 0) return;

  const float* energies = reinterpret_cast<const float*>(state.data + 4 * kStripLanes * bank.columns * bank.words);
  f32x16 total = {};
  for (int64_t n = 0; n < bank.columns; ++n) {
    total += load16(energies + n * kStripLanes);
    ask_for<2>(energies, n, stride);
  }
  store16(state.total, total);
  uint32_t odd = 0;
  for (int lane = 0; lane < kStripLanes; ++lane) {
    const bool usual = state.total[lane] >= 0x1p-80f && state.total[lane] <= 0x1p110f;
    odd |= static_cast<uint32_t>(!usual) << lane;
    state.norm[lane] = usual ? std::sqrt(state.total[lane]) * (1.0f + 0x1p-16f) : 0.0f;
  }
  odd &= state.valid;
  if (odd != 0) {
    const uint32_t broken = word_kinds(bank, state.data, odd, &state.zero);
    state.valid &= ~broken;
    state.wild = odd & ~broken & ~state.zero;
  }
}

// Inverse window norms for queries of `width` columns. The windows are summed by doubling: no subtraction, so that
// every sum of positive numbers keeps its digits.
__attribute__((noinline)) void set_width(const ScreenJob& job, int64_t width, BlockState& state) {
  state.width = width;
  const int64_t columns = job.bank.columns;
  if (job.dot) {
    for (int64_t i = 0; i < columns * kStripLanes; ++i) state.inverse_norm[i] = 1.0f;
    std::memcpy(state.reach, state.norm, sizeof state.reach);
    state.unsure = 0;
    return;
  }
  const float* energies = reinterpret_cast<const float*>(state.data + 4 * kStripLanes * columns * job.bank.words);
  float *window = state.inverse_norm, *runs = state.sums, *longer = runs + columns * kStripLanes;
  const f32x16 total = load16(state.total);
  if (width == columns) {
    for (int64_t s = 0; s < columns; ++s) store16(window + s * kStripLanes, total);
  } else {
    std::memcpy(runs, energies, static_cast<size_t>(4 * kStripLanes * columns));
    bool first = true;
    for (int64_t run = 1, offset = 0; run <= width; run *= 2) {  // runs[s] = sum of `run` columns from s on
      if (width & run) {
        for (int64_t s = 0, at = offset; s < columns; ++s, at = at + 1 < columns ? at + 1 : 0) {
          const f32x16 here = load16(runs + at * kStripLanes);
          store16(window + s * kStripLanes, first ? here : load16(window + s * kStripLanes) + here);
        }
        first = false;
        offset += run;
      }
      if (2 * run > width) break;
      for (int64_t s = 0, at = run % columns; s < columns; ++s, at = at + 1 < columns ? at + 1 : 0)
        store16(longer + s * kStripLanes, load16(runs + s * kStripLanes) + load16(runs + at * kStripLanes));
      float* swap = runs;
      runs = longer, longer = swap;
    }
  }
  state.unsure = 0;
  for (int lane = 0; lane < kStripLanes; lane += kLanes) {
    const Lanes all_columns = load(state.total + lane), least = all_columns * 1e-6f;
    const Lanes surely_below = least * (1.0f - 1e-5f), surely_above = least * (1.0f + 1e-5f);
    Lanes most = {};
    uint32_t unsure = 0;
    for (int64_t s = 0; s < columns; ++s) {
      float* at = window + s * kStripLanes + lane;
      const Lanes energy = load(at);
      Lanes inverse = 1.0f / square_root(energy);
      inverse = pick(energy > surely_below, inverse, Lanes{});
      unsure |= at_least(energy, surely_below) & at_least(surely_above, energy);
      most = highest(inverse, most);
      store(at, inverse);
      if (width == columns) {  // one window
        for (++s; s < columns; ++s) store(window + s * kStripLanes + lane, inverse);
        unsure = 0;
      }
    }
    store(state.reach + lane, most * load(state.norm + lane));
    state.unsure |= unsure << lane;
  }
  state.unsure &= ~state.zero;
}

// ---------------------------------------------------------------------------------------------------------------
// Products. A sweep adds up, for `kQueries` queries and `kBlocksNow` blocks, planes of the correlation:
// planes[(block * kQueries + query) * W + plane].

// Operands of one plane that a word of the bank is multiplied with, for each query.
template <Products kProducts>
constexpr int kValues = kProducts == Products::kBf16 ? 2 : 1;

struct Decoded {
  Lanes value[2];  // as many as kValues
};

template <Products kProducts>
GEOLOC_FAST_INLINE Decoded decode(const uint32_t* word) {
  const Words bits = load(word);
  if constexpr (kProducts == Products::kBf16)
    return {{reinterpret_cast<Lanes>(bits << 16), reinterpret_cast<Lanes>(bits & 0xffff0000u)}};
  else
    return {{reinterpret_cast<Lanes>(bits), Lanes{}}};
}

// An operand for all lanes. With `kKeep` it stays in a register for its several uses, where the compiler would load it
// for each of them.
template <bool kKeep>
GEOLOC_FAST_INLINE Lanes broadcast(const uint32_t* operand) {
  Lanes result = all(*reinterpret_cast<const float*>(operand));  // whatever its bits mean
#if defined(__AVX512F__)
  if constexpr (kKeep) asm("" : "+v"(result));
#endif
  return result;
}

template <Products kProducts>
GEOLOC_FAST_INLINE void add_product(Lanes& sum, Lanes a, Lanes b) {
  if constexpr (kProducts == Products::kBf16Dot) {
#if defined(__AVX512BF16__)
    sum = reinterpret_cast<Lanes>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
#endif
  } else {
    sum += a * b;
  }
}

// Chains of dependent additions are kept at six or more, by splitting the words among `kSplit` sums.
constexpr int split_of(int chains) { return chains >= 6 ? 1 : chains >= 3 ? 2 : chains >= 2 ? 4 : 8; }

// What the sweeps over one tile of queries share. They go over the words [begin, end) of a plane.
struct Stretch {
  const uint32_t* const* from;  // the blocks, at the part's first lane
  int64_t columns, words, begin, end;
  Lanes* planes;

  void put(int64_t at, Lanes value) const { planes[at] = begin > 0 ? planes[at] + value : value; }
};

// word_products(w, split) for every word, split < kSplit.
template <int kSplit, typename WordProducts>
GEOLOC_FAST_INLINE void over_words(const Stretch& s, const WordProducts& word_products) {
  int64_t w = s.begin;
  for (; w + kSplit <= s.end; w += kSplit)
#pragma GCC unroll 8
    for (int split = 0; split < kSplit; ++split) word_products(w + split, split);
  for (; w < s.end; ++w) word_products(w, 0);
}

template <int kSplit, size_t kBlocksNow, size_t kQueries>
GEOLOC_FAST_INLINE Lanes joined(const Lanes (&sum)[kSplit][kBlocksNow][kQueries], int b, int q) {
  Lanes total = sum[0][b][q];
  for (int split = 1; split < kSplit; ++split) total += sum[split][b][q];
  return total;
}

// A plane that is a frequency: 0, and W/2 for even W. Operands [word][value][query].
template <Products kProducts, int kQueries, int kBlocksNow, bool kAsks>
GEOLOC_FAST_INLINE void sweep_real(const Stretch& s, int64_t plane, const uint32_t* operands) {
  constexpr int kSplit = split_of(kQueries * kBlocksNow);
  Lanes sum[kSplit][kBlocksNow][kQueries] = {};
  over_words<kSplit>(s, [&](int64_t w, int split) __attribute__((always_inline)) {
    Decoded in[kBlocksNow];
    for (int b = 0; b < kBlocksNow; ++b) {
      in[b] = decode<kProducts>(s.from[b] + (plane * s.words + w) * kStripLanes);
      if constexpr (kAsks) ask_for<1>(s.from[b], plane * s.words + w, kAskAhead);
    }
    for (int v = 0; v < kValues<kProducts>; ++v)
      for (int q = 0; q < kQueries; ++q) {
        const Lanes value = broadcast<(kBlocksNow > 1)>(operands + (w * kValues<kProducts> + v) * kQueries + q);
        for (int b = 0; b < kBlocksNow; ++b) add_product<kProducts>(sum[split][b][q], in[b].value[v], value);
      }
  });
  for (int b = 0; b < kBlocksNow; ++b)
    for (int q = 0; q < kQueries; ++q) s.put((b * kQueries + q) * s.columns + plane, joined(sum, b, q));
}

// Planes `plane` and the next, the two parts of a frequency, by three products. Operands [word][value][query][3].
template <Products kProducts, int kQueries, int kBlocksNow, bool kAsks>
GEOLOC_FAST_INLINE void sweep_three(const Stretch& s, int64_t plane, const uint32_t* operands) {
  constexpr int kSplit = split_of(kQueries * kBlocksNow * 3);
  Lanes k1[kSplit][kBlocksNow][kQueries] = {}, k2[kSplit][kBlocksNow][kQueries] = {},
        k3[kSplit][kBlocksNow][kQueries] = {};
  over_words<kSplit>(s, [&](int64_t w, int split) __attribute__((always_inline)) {
    Decoded re[kBlocksNow], im[kBlocksNow];
    for (int b = 0; b < kBlocksNow; ++b) {
      re[b] = decode<kProducts>(s.from[b] + (plane * s.words + w) * kStripLanes);
      im[b] = decode<kProducts>(s.from[b] + ((plane + 1) * s.words + w) * kStripLanes);
      if constexpr (kAsks)
        for (int p = 0; p < 2; ++p) ask_for<1>(s.from[b], plane * s.words + 2 * w + p, kAskAhead);
    }
    for (int v = 0; v < kValues<kProducts>; ++v) {
      Lanes sum[kBlocksNow];
      for (int b = 0; b < kBlocksNow; ++b) sum[b] = re[b].value[v] + im[b].value[v];
      for (int q = 0; q < kQueries; ++q) {
        const uint32_t* operand = operands + ((w * kValues<kProducts> + v) * kQueries + q) * 3;
        const Lanes q1 = broadcast<(kBlocksNow > 1)>(operand);
        for (int b = 0; b < kBlocksNow; ++b) k1[split][b][q] += sum[b] * q1;
        const Lanes q2 = broadcast<(kBlocksNow > 1)>(operand + 1);
        for (int b = 0; b < kBlocksNow; ++b) k2[split][b][q] += re[b].value[v] * q2;
        const Lanes q3 = broadcast<(kBlocksNow > 1)>(operand + 2);
        for (int b = 0; b < kBlocksNow; ++b) k3[split][b][q] += im[b].value[v] * q3;
      }
    }
  });
  for (int b = 0; b < kBlocksNow; ++b)
    for (int q = 0; q < kQueries; ++q) {
      const int64_t at = (b * kQueries + q) * s.columns + plane;
      s.put(at, joined(k1, b, q) - joined(k3, b, q));
      s.put(at + 1, joined(k1, b, q) + joined(k2, b, q));
    }
}

// The same of one block by dot products of two channels. Operands [word][query][2]. The instruction cannot subtract, so
// the two halves of the imaginary part have sums of their own.
template <int kQueries, bool kAsks>
GEOLOC_FAST_INLINE void sweep_four(const Stretch& s, int64_t plane, const uint32_t* operands) {
  constexpr int kSplit = split_of(kQueries * 3);
  constexpr Products kDot = Products::kBf16Dot;
  Lanes re[kSplit][1][kQueries] = {}, plus[kSplit][1][kQueries] = {}, minus[kSplit][1][kQueries] = {};
  over_words<kSplit>(s, [&](int64_t w, int split) __attribute__((always_inline)) {
    const Lanes in_re = decode<kDot>(s.from[0] + (plane * s.words + w) * kStripLanes).value[0];
    const Lanes in_im = decode<kDot>(s.from[0] + ((plane + 1) * s.words + w) * kStripLanes).value[0];
    if constexpr (kAsks)
      for (int p = 0; p < 2; ++p) ask_for<1>(s.from[0], plane * s.words + 2 * w + p, kAskAhead);
    for (int q = 0; q < kQueries; ++q) {
      const uint32_t* operand = operands + (w * kQueries + q) * 2;
      const Lanes query_re = broadcast<false>(operand), query_im = broadcast<false>(operand + 1);
      add_product<kDot>(re[split][0][q], in_re, query_re);
      add_product<kDot>(plus[split][0][q], in_im, query_re);
      add_product<kDot>(minus[split][0][q], in_re, query_im);
      add_product<kDot>(re[split][0][q], in_im, query_im);
    }
  });
  for (int q = 0; q < kQueries; ++q) {
    s.put(q * s.columns + plane, joined(re, 0, q));
    s.put(q * s.columns + plane + 1, joined(plus, 0, q) - joined(minus, 0, q));
  }
}

int64_t run_of_words(const StripBankView& bank) { return bank.bf16 ? kChannelsInARow / 2 : kChannelsInARow; }

// All planes, in the order of memory.
template <Products kProducts, int kQueries, int kBlocksNow>
__attribute__((noinline)) void sweep_planes(const StripBankView& bank, const uint32_t* const* from,
                                            const uint32_t* all_operands, Lanes* planes, Ahead& ahead) {
  const int64_t columns = bank.columns, words = bank.words, run = run_of_words(bank);
  const int64_t line = words * kValues<kProducts> * kQueries;  // operands of a plane that is a frequency
  for (int64_t begin = 0; begin < words; begin += run) {
    const Stretch s{from, columns, words, begin, words - begin < run ? words : begin + run, planes};
    const uint32_t* operands = all_operands;
    auto real = [&](int64_t plane) {
      ahead_of(ahead, [&](auto asks) __attribute__((always_inline)) {
        sweep_real<kProducts, kQueries, kBlocksNow, asks != 0>(s, plane, operands);
      });
    };
    real(0);
    operands += line;
    for (int64_t plane = 1; plane + 1 < columns; plane += 2)
      ahead_of(ahead, [&](auto asks) __attribute__((always_inline)) {
        if constexpr (kProducts == Products::kBf16Dot) {
          sweep_four<kQueries, asks != 0>(s, plane, operands);
          operands += 2 * line;
        } else {
          sweep_three<kProducts, kQueries, kBlocksNow, asks != 0>(s, plane, operands);
          operands += 3 * line;
        }
      });
    if (columns % 2 == 0) real(columns - 1);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// From the planes of a pair's correlation to its bounds.

struct Scratch {
  Lanes* planes;       // of a tile: [blocks][queries][W]; flat, of all queries: [tiles][blocks][queries of the tile]
  Lanes* correlation;  // [W]
  Lanes* inverse;      // for inverse_any: re and im [W/2+1], and what it takes
  float* inverse_norm[kMostBlocks];
  float* sums;
};

int64_t planes_of_scratch(int64_t columns, int64_t pass) {
  return kMostBlocks * (columns == 1 ? pass : kMostQueries * columns);
}
int64_t lines_of_inverse(int64_t columns) { return columns + 2 + transform_scratch(columns); }

Scratch scratch_at(void* memory, int64_t columns, int64_t pass) {
  Scratch scratch;
  scratch.planes = static_cast<Lanes*>(memory);
  scratch.correlation = scratch.planes + planes_of_scratch(columns, pass);
  scratch.inverse = scratch.correlation + columns;
  float* floats = reinterpret_cast<float*>(scratch.inverse + lines_of_inverse(columns));
  for (int b = 0; b < kMostBlocks; ++b) scratch.inverse_norm[b] = floats + b * columns * kStripLanes;
  scratch.sums = floats + kMostBlocks * columns * kStripLanes;
  return scratch;
}

struct ScreenRun {
  const ScreenJob& job;
  int slot;
  const float* threshold;
  Scratch scratch;
  Ahead ahead;
};

// Bounds of the pairs of one query and one part of a block, from the correlation in scratch. Seldom called.
__attribute__((noinline)) void examine(const ScreenRun& run, int64_t query, const BlockState& block, int part,
                                       uint32_t lanes) {
  const ScreenJob& job = run.job;
  const int first_lane = part * kLanes;
  const Lanes* c = run.scratch.correlation;
  const float* inverse_norm = block.inverse_norm + first_lane;
  const float slack = job.queries[query].slack, gain = job.queries[query].gain;
  const Lanes e = load(block.norm + first_lane) * job.queries[query].epsilon;
  // A lane where only one shift can be the chosen one need not be scored at the others.
  Lanes upper, lower, choices = {}, choice = {};
  if (job.cosine) {
    upper = lower = all(-INFINITY);
    for (int64_t s = 0; s < job.bank.columns; ++s) {
      const Lanes inverse = load(inverse_norm + s * kStripLanes);
      upper = highest((c[s] + e) * inverse, upper);
      lower = highest((c[s] - e) * inverse, lower);
    }
    for (int64_t s = 0; s < job.bank.columns; ++s) {
      const Lanes inverse = load(inverse_norm + s * kStripLanes);
      const auto possible = (c[s] + e) * inverse + slack >= lower - slack;
      choices += pick(possible, all(1.0f), Lanes{});
      choice = pick(possible, all(static_cast<float>(s)), choice);
    }
  } else {
    Lanes best = c[0];
    for (int64_t s = 1; s < job.bank.columns; ++s) best = highest(c[s], best);
    const Lanes least = best - 2.0f * e;
    upper = all(-INFINITY), lower = all(INFINITY);
    for (int64_t s = 0; s < job.bank.columns; ++s) {
      const Lanes inverse = load(inverse_norm + s * kStripLanes);
      const Lanes above = (c[s] + e) * inverse, below = (c[s] - e) * inverse;
      const auto possible = c[s] >= least;
      upper = pick(possible & (above > upper), above, upper);
      lower = pick(possible & (below < lower), below, lower);
      choices += pick(possible, all(1.0f), Lanes{});
      choice = pick(possible, all(static_cast<float>(s)), choice);
    }
  }
  ScreenHits hits{query, block.block, 0, {}, {}, {}};
  for (int i = 0; i < kLanes; ++i) {
    const int lane = first_lane + i;
    const uint32_t bit = 1u << lane;
    if (!(lanes & 1u << i)) continue;
    float low = lower[i] * gain - slack, high = upper[i] * gain + slack;
    int32_t shift = choices[i] == 1.0f ? static_cast<int32_t>(choice[i]) : kAnyShift;
    if ((block.wild & bit) || !(low <= high)) {
      low = -INFINITY, high = INFINITY, shift = kAnyShift;
    } else if (block.zero & bit) {
      low = high = 0.0f, shift = kAnyShift;
    } else if (block.unsure & bit) {
      low = -INFINITY, high = high > slack ? high : slack, shift = kAnyShift;
    }
    if (!(high >= run.threshold[query])) continue;
    hits.lanes |= bit;
    hits.lower[lane] = low;
    hits.upper[lane] = high;
    hits.shift[lane] = shift;
  }
  if (hits.lanes != 0) job.keep(job.owner, run.slot, hits);
}

// The quick test: an upper bound of the score at any shift, for one query and one part of a block.
template <int kColumns>
GEOLOC_FAST_INLINE void finish(const ScreenRun& run, int64_t query, BlockState& block, int part, const Lanes* planes) {
  const ScreenJob& job = run.job;
  const int64_t columns = kColumns ? kColumns : job.bank.columns;
  if (block.width != job.queries[query].width) set_width(job, job.queries[query].width, block);
  const float* inverse_norm = block.inverse_norm + part * kLanes;
  Lanes best = all(-INFINITY);
  constexpr int kFixed = kColumns ? kColumns : 1;
  Lanes fixed[kFixed];
  if constexpr (kColumns > 0) {
    Lanes re[kColumns / 2 + 1], im[kColumns / 2 + 1];
    re[0] = planes[0];
#pragma GCC unroll 32
    for (int f = 1; f <= (kColumns - 1) / 2; ++f) re[f] = planes[2 * f - 1], im[f] = planes[2 * f];
    if constexpr (kColumns > 1) re[kColumns / 2] = planes[kColumns - 1];
    inverse_fixed<kColumns, float>(re, im, fixed, 1);
#pragma GCC unroll 64
    for (int s = 0; s < kColumns; ++s) best = highest(fixed[s] * load(inverse_norm + s * kStripLanes), best);
  } else {
    Lanes *re = run.scratch.inverse, *im = re + columns / 2 + 1, *c = run.scratch.correlation;
    re[0] = planes[0];
    for (int64_t f = 1; f <= (columns - 1) / 2; ++f) re[f] = planes[2 * f - 1], im[f] = planes[2 * f];
    if (columns % 2 == 0) re[columns / 2] = planes[columns - 1];
    inverse_any(columns, re, im, c, 1, job.float_circle, columns, im + columns / 2 + 1);
    for (int64_t s = 0; s < columns; ++s) best = highest(c[s] * load(inverse_norm + s * kStripLanes), best);
  }
  const Lanes bound = (best + load(block.reach + part * kLanes) * job.queries[query].epsilon) * job.queries[query].gain;
  uint32_t lanes = at_least(bound, all(run.threshold[query] - job.queries[query].slack));
  lanes |= (block.wild | block.unsure) >> part * kLanes;
  lanes &= block.valid >> part * kLanes & ((1u << kLanes) - 1);
  if (__builtin_expect(lanes != 0, 0)) {
    if constexpr (kColumns > 0)
      for (int s = 0; s < kColumns; ++s) run.scratch.correlation[s] = fixed[s];
    examine(run, query, block, part, lanes);
  }
}

template <int kColumns>
__attribute__((noinline)) void finish_all(const ScreenRun& run, int64_t first, int queries, BlockState* blocks,
                                          int count, int part) {
  const int64_t columns = kColumns ? kColumns : run.job.bank.columns;
  const Lanes* planes = run.scratch.planes;
  for (int b = 0; b < count; ++b)
    for (int q = 0; q < queries; ++q, planes += columns)
      if (blocks[b].valid != 0) finish<kColumns>(run, first + q, blocks[b], part, planes);
}

void finish_tile(const ScreenRun& run, int64_t first, int queries, BlockState* blocks, int count, int part) {
  switch (run.job.bank.columns) {
    case 1: return finish_all<1>(run, first, queries, blocks, count, part);
    case 8: return finish_all<8>(run, first, queries, blocks, count, part);
    case 16: return finish_all<16>(run, first, queries, blocks, count, part);
    case 32: return finish_all<32>(run, first, queries, blocks, count, part);
    case 64: return finish_all<64>(run, first, queries, blocks, count, part);
    default: return finish_all<0>(run, first, queries, blocks, count, part);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// Tiles of queries against one or two blocks.

// sweep(Number) for a tile of `tile` queries, at most kMost.
template <int kMost, typename Sweep>
GEOLOC_FAST_INLINE void for_tile(int64_t tile, const Sweep& sweep) {
  if (tile == kMost) return sweep(Number<kMost>{});
  if constexpr (kMost > 1) for_tile<kMost / 2>(tile, sweep);
}

template <Products kProducts>
void sweep_spectral(ScreenRun& run, const uint32_t* const* from, BlockState* blocks, int count, int part) {
  const ScreenJob& job = run.job;
  for (int64_t first = 0, tile; first < job.live; first += tile) {
    tile = tile_at(kProducts, job.bank.columns, first, job.live);
    const uint32_t* operands = job.operands + first * job.operand_words;
    for_tile<most_queries(kProducts, false)>(tile, [&](auto queries) __attribute__((always_inline)) {
      constexpr int kBlocks = most_blocks(kProducts, false);
      if (count == kBlocks)
        sweep_planes<kProducts, queries, kBlocks>(job.bank, from, operands, run.scratch.planes, run.ahead);
      else
        sweep_planes<kProducts, queries, 1>(job.bank, from, operands, run.scratch.planes, run.ahead);
    });
    finish_tile(run, first, static_cast<int>(tile), blocks, count, part);
  }
}

// W = 1: a matrix product. A run of words of the blocks stays in the first-level cache for all tiles.
template <Products kProducts, int kBlocksNow>
void sweep_flat(ScreenRun& run, const uint32_t* const* from, BlockState* blocks, int part) {
  const ScreenJob& job = run.job;
  const int64_t words = job.bank.words, length = run_of_words(job.bank);
  Lanes* const all_planes = run.scratch.planes;
  for (int64_t begin = 0; begin < words; begin += length)
    for (int64_t first = 0, tile; first < job.live; first += tile) {
      tile = tile_at(kProducts, 1, first, job.live);
      const Stretch s{
          from, 1, words, begin, words - begin < length ? words : begin + length, all_planes + first * kBlocksNow};
      ahead_of(run.ahead, [&](auto asks) __attribute__((always_inline)) {
        for_tile<most_queries(kProducts, true)>(tile, [&](auto queries) __attribute__((always_inline)) {
          sweep_real<kProducts, queries, kBlocksNow, asks != 0>(s, 0, job.operands + first * job.operand_words);
        });
      });
    }
  for (int64_t first = 0, tile; first < job.live; first += tile) {
    tile = tile_at(kProducts, 1, first, job.live);
    finish_all<1>(run, first, static_cast<int>(tile), blocks, kBlocksNow, part);
    run.scratch.planes += tile * kBlocksNow;
  }
  run.scratch.planes = all_planes;
}

template <Products kProducts>
void screen(const ScreenJob& job, int slot, int64_t begin, int64_t end, const float* threshold, void* memory) {
  const StripBankView& bank = job.bank;
  const bool flat = bank.columns == 1;
  const int at_once = most_blocks(kProducts, flat);
  const int64_t stride = at_once * bank.block_bytes;
  ScreenRun run{job, slot, threshold, scratch_at(memory, bank.columns, job.pass), {}};
  int64_t sweeps = 0;
  for (int64_t first = 0; first < job.live; ++sweeps) first += tile_at(kProducts, bank.columns, first, job.live);
  run.ahead.line_by_line = sweeps == 1;
  sweeps *= kStripLanes / kLanes;
  sweeps *= flat ? (bank.words + run_of_words(bank) - 1) / run_of_words(bank) : bank.columns / 2 + 1;
  BlockState blocks[kMostBlocks];
  for (int64_t block = begin; block < end; block += at_once) {
    const int count = static_cast<int>(end - block < at_once ? end - block : at_once);
    uint32_t valid = 0;
    for (int b = 0; b < count; ++b) {
      blocks[b].inverse_norm = run.scratch.inverse_norm[b];
      blocks[b].sums = run.scratch.sums;
      open_block(job, block + b, stride, blocks[b]);
      valid |= blocks[b].valid;
    }
    if (valid == 0) continue;
    const int64_t after = end - block - count < at_once ? end - block - count : at_once;
    run.ahead.next = blocks[0].data + count * bank.block_bytes;
    run.ahead.end = run.ahead.next + after * bank.block_bytes;
    run.ahead.lines = (after * bank.block_bytes / 64 + sweeps - 1) / sweeps;
    for (int part = 0; part < kStripLanes / kLanes; ++part) {
      const uint32_t* from[kMostBlocks];
      for (int b = 0; b < count; ++b) from[b] = reinterpret_cast<const uint32_t*>(blocks[b].data) + part * kLanes;
      if (!flat)
        sweep_spectral<kProducts>(run, from, blocks, count, part);
      else if (count == kMostBlocks)
        sweep_flat<kProducts, kMostBlocks>(run, from, blocks, part);
      else
        sweep_flat<kProducts, 1>(run, from, blocks, part);
    }
  }
}

}  // namespace

int64_t strip_topk_tile(Products products, int64_t columns, int64_t first, int64_t live) {
  return tile_at(products, columns, first, live);
}

int64_t strip_topk_scratch(int64_t columns, int64_t pass) {
  const int64_t lines = planes_of_scratch(columns, pass) + columns + lines_of_inverse(columns);
  const int64_t screen = 4 * kLanes * lines + (kMostBlocks + 2) * columns * kStripLanes * 4;
  const int64_t operands = 64 * (3 * columns + 2 + transform_scratch(columns));
  return ((screen > operands ? screen : operands) + 63) / 64 * 64;
}

void strip_topk_operands(const ScreenJob& job, int64_t i, int64_t first, int64_t tile, void* scratch) {
  const StripBankView& bank = job.bank;
  ScreenQuery& query = job.queries[i];
  const bool dot = job.products == Products::kBf16Dot;
  const int64_t columns = bank.columns, member = i - first;
  const int64_t channels = bank.words * (bank.bf16 ? 2 : 1), frequencies = (columns - 1) / 2;
  const int64_t rows = dot ? bank.words : channels, numbers = dot ? 2 : 3;  // of a frequency that is two planes
  const double scale = query.energy > 0.0 ? 1.0 / std::sqrt(query.energy) : 0.0;
  const double middle = std::sqrt(2.0 / static_cast<double>(columns)),
               ends = std::sqrt(1.0 / static_cast<double>(columns));
  f64x8 *in = static_cast<f64x8*>(scratch), *re = in + columns, *im = re + columns / 2 + 1;  // 8 channels
  uint32_t* operands = job.operands + first * job.operand_words;
  double residual = 0.0;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t lane = c % 8, row = (dot ? c / 2 : c) * tile + member;
    if (lane == 0) {
      for (int64_t x = 0; x < columns; ++x) in[x] = f64x8{};
      for (int64_t j = 0; j < 8 && c + j < bank.values; ++j)
        for (int64_t x = 0; x < query.width; ++x) in[x][j] = query.values[(c + j) * job.padded_width + x] * scale;
      forward_any(columns, in, 1, re, im, job.circle, columns, im + columns / 2 + 1);
    }
    auto put = [&](int64_t at, double value) {
      const float single = static_cast<float>(value);
      if (!dot) return void(std::memcpy(operands + at, &single, sizeof single));
      const BFloat16 half = from_float<BFloat16>(single);
      std::memcpy(reinterpret_cast<uint16_t*>(operands + at) + c % 2, &half, sizeof half);
      residual += (value - to_float(half)) * (value - to_float(half));
    };
    put(row, re[0][lane] * ends);
    int64_t at = rows * tile;
    for (int64_t f = 1; f <= frequencies; ++f, at += numbers * rows * tile) {
      const double query_re = re[f][lane] * middle, query_im = im[f][lane] * middle;
      put(at + row * numbers, query_re);
      put(at + row * numbers + 1, dot ? query_im : -query_im - query_re);  // d - c of the conjugate c + i d
      if (!dot) put(at + row * numbers + 2, query_re - query_im);
    }
    if (columns % 2 == 0) put(at + row, re[columns / 2][lane] * ends);
  }
  const bool zero = !(query.energy > 0.0);
  query.epsilon = zero ? 0.0f : job.epsilon + static_cast<float>(1.1 * std::sqrt(residual));
  query.slack = zero ? 0.0f : kScoreSlack;
  query.gain = 1.0f;
  if (job.dot && !zero) {
    const double norm = std::sqrt(query.energy);
    const bool usual = norm >= 0x1p-100 && norm <= 0x1p100;
    query.epsilon += kScoreSlack;
    query.slack = usual ? 0.0f : INFINITY;
    query.gain = usual ? static_cast<float>(norm) : 1.0f;
  }
}

void strip_topk_screen(const ScreenJob& job, int slot, int64_t begin, int64_t end, const float* threshold,
                       void* memory) {
  switch (job.products) {
    case Products::kFp32: return screen<Products::kFp32>(job, slot, begin, end, threshold, memory);
    case Products::kBf16: return screen<Products::kBf16>(job, slot, begin, end, threshold, memory);
    case Products::kBf16Dot:
#if defined(__AVX512BF16__)
      return screen<Products::kBf16Dot>(job, slot, begin, end, threshold, memory);
#endif
      return;
  }
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
