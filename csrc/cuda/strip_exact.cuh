// Decoding a strip and scoring a pair on the GPU: the float64 arithmetic of cpu/strip_exact.h and
// cpu/strip_score_kernel.cpp, sum for sum, so that the bits are the same. For sources compiled with -fmad=false.
// SPDX-License-Identifier: Apache-2.0
//
// A warp works on one strip. Decoding: lane = channel of a chunk of 32. Sums over channels: eight chains, one for each
// channel modulo 8, as on the CPU; lane l keeps chain l % 8 of the columns or shifts that are l / 8 modulo 4.
#pragma once
#include "cuda/device.h"
// after device.h
#include "common/azimuth_transform.h"
#include "cuda/strip_exact_heuristics.h"
#include "geoloc_fast/strip_bank.h"
#include "geoloc_fast/strip_score.h"

namespace geoloc_fast::cuda {

constexpr int kChunk = 32, kChains = 8, kShiftLanes = 4;

// Transforms written out, in registers; their warps work in shared memory, all others in global memory.
constexpr bool has_fixed_transform(int64_t columns) { return columns == 1 || columns == 16 || columns == 64; }

// What a warp works in.
struct ExactSpace {
  double* decoded;        // [kChunk][columns + 1]: the odd length keeps lanes in different banks
  double* correlation;    // [columns][kChains]
  double* energy;         // [columns][kChains]
  double* column_energy;  // [columns]
  double* planes;         // [columns + transform] a lane; not for a fixed transform
};

constexpr int64_t transform_doubles(int64_t columns) { return 4 * columns + 2 + transform_scratch(columns); }
// Doubles of a warp.
constexpr int64_t exact_doubles(int64_t columns, bool fixed) {
  return kChunk * (columns + 1) + (2 * kChains + 1) * columns + (fixed ? 0 : 32 * transform_doubles(columns));
}

__device__ __forceinline__ ExactSpace exact_space(double* memory, int64_t columns) {
  ExactSpace space;
  space.decoded = memory;
  space.correlation = space.decoded + kChunk * (columns + 1);
  space.energy = space.correlation + kChains * columns;
  space.column_energy = space.energy + kChains * columns;
  space.planes = space.column_energy + columns + lane_id() * transform_doubles(columns);
  return space;
}

// This warp's work space: in `global` (strip_exact_heuristics.h), or in shared memory for a fixed transform.
template <int kColumns>
__device__ __forceinline__ ExactSpace warp_space(double* global, int64_t columns) {
  const int64_t doubles = exact_doubles(columns, kColumns != 0), warp = threadIdx.x / 32;
  if constexpr (kColumns != 0) return exact_space(dynamic_shared<double>() + warp * doubles, columns);
  return exact_space(global + (static_cast<int64_t>(blockIdx.x) * kExactWarps + warp) * doubles, columns);
}

// The tree of cpu/strip_exact.h: every lane of the eight gets the sum.
__device__ __forceinline__ double chain_sum(double value) {
  value += shuffle_xor(value, 1);
  value += shuffle_xor(value, 2);
  return value + shuffle_xor(value, 4);
}

__device__ __forceinline__ float stored_value(const StripBankView& bank, const uint8_t* row, int64_t plane, int64_t c) {
  const int64_t word = plane * bank.words + (bank.bf16 ? c / 2 : c);
  const uint32_t bits = load_vector<uint32_t>(row + word * kStripLanes * 4);
  if (!bank.bf16) return __uint_as_float(bits);
  return __uint_as_float(c % 2 ? bits & 0xffff0000u : bits << 16);
}

__device__ __forceinline__ const uint8_t* row_of(const StripBankView& bank, int64_t row) {
  return bank.blocks + row / kStripLanes * bank.block_bytes + row % kStripLanes * 4;
}

__device__ __forceinline__ double plane_ends(int64_t columns) { return sqrt(1.0 / static_cast<double>(columns)); }
__device__ __forceinline__ double plane_middle(int64_t columns) { return sqrt(2.0 / static_cast<double>(columns)); }

// Columns of one channel from its planes: columns_of of the CPU for a lane. plane(p) reads, column(n, value) writes.
template <int kColumns, typename Plane, typename Column>
__device__ __forceinline__ void columns_of(int64_t columns, const double* circle, double* scratch, Plane plane,
                                           Column column) {
  const double ends = plane_ends(columns), middle = plane_middle(columns);
  if constexpr (kColumns > 0) {
    double re[kColumns / 2 + 1], im[kColumns / 2 + 1], out[kColumns];
    re[0] = plane(0) * ends;
#pragma unroll
    for (int f = 1; f <= (kColumns - 1) / 2; ++f) {
      re[f] = plane(2 * f - 1) * middle;
      im[f] = plane(2 * f) * middle;
    }
    if (kColumns % 2 == 0) re[kColumns / 2] = plane(kColumns - 1) * ends;
    inverse_fixed<kColumns, double>(re, im, out, 1);
#pragma unroll
    for (int n = 0; n < kColumns; ++n) column(n, out[n]);
  } else {
    double *re = scratch, *im = re + columns / 2 + 1, *out = im + columns / 2 + 1;
    re[0] = plane(0) * ends;
    for (int64_t f = 1; f <= (columns - 1) / 2; ++f) {
      re[f] = plane(2 * f - 1) * middle;
      im[f] = plane(2 * f) * middle;
    }
    if (columns % 2 == 0) re[columns / 2] = plane(columns - 1) * ends;
    inverse_any(columns, re, im, out, 1, circle, columns, out + columns);
    for (int64_t n = 0; n < columns; ++n) column(n, out[n]);
  }
}

// Channels [begin, begin + kChunk) of one strip to space.decoded, as float32 values; 0 beyond K.
template <int kColumns>
__device__ __forceinline__ void decode(const StripBankView& bank, const uint8_t* row, int64_t begin,
                                       const double* circle, const ExactSpace& space) {
  const int64_t columns = kColumns ? kColumns : bank.columns, c = begin + lane_id();
  double* to = space.decoded + lane_id() * (columns + 1);
  if (c < bank.values)
    columns_of<kColumns>(
        columns, circle, space.planes, [&](int64_t p) { return static_cast<double>(stored_value(bank, row, p, c)); },
        [&](int64_t n, double value) { to[n] = static_cast<double>(static_cast<float>(value)); });
  else
    for (int64_t n = 0; n < columns; ++n) to[n] = 0.0;
  sync_warp();
}

// What decides the shift: the correlation, the cosine, or the correlation as the score itself.
enum class Decides { kCorrelation, kCosine, kDot };
__host__ __device__ constexpr Decides decides(bool cosine, bool dot) {
  return dot ? Decides::kDot : cosine ? Decides::kCosine : Decides::kCorrelation;
}

struct ExactScore {
  float score;
  int32_t shift;
};

__device__ __forceinline__ bool is_finite(double value) { return value - value == 0.0; }

__device__ __forceinline__ int64_t width_of(const int64_t* width, int64_t b, int64_t padded_width) {
  const int64_t w = width ? width[b] : padded_width;
  return w < 1 ? 1 : w > padded_width ? padded_width : w;
}

// The energy of a query, by the CPU's order of sums; the same in every lane.
__device__ __forceinline__ double query_energy(const float* query, int64_t values, int64_t padded_width,
                                               int64_t width) {
  const int chain = lane_id() % kChains;
  double energy = 0.0;
  for (int64_t begin = 0; begin < values; begin += kChains)
    for (int64_t x = 0; x < width; ++x) {
      const double value =
          begin + chain < values ? static_cast<double>(query[(begin + chain) * padded_width + x]) : 0.0;
      energy += value * value;
    }
  return chain_sum(energy);
}

// strip_score of one pair; the whole warp calls it, and every lane has the answer. Where there is a `curve`, [columns],
// it takes the cosine of every shift.
template <int kColumns>
__device__ ExactScore score_pair(const StripBankView& bank, const double* circle, const float* query,
                                 int64_t padded_width, int64_t width, double energy_of_query, Decides by, int64_t row,
                                 const ExactSpace& space, float* curve = nullptr) {
  const int64_t columns = kColumns ? kColumns : bank.columns;
  const int lane = lane_id(), chain = lane % kChains, part = lane / kChains;
  const uint8_t* from = row_of(bank, row);
  for (int64_t s = part; s < columns; s += kShiftLanes)
    space.correlation[s * kChains + chain] = space.energy[s * kChains + chain] = 0.0;
  for (int64_t begin = 0; begin < bank.values; begin += kChunk) {
    decode<kColumns>(bank, from, begin, circle, space);
    for (int64_t v = begin; v < begin + kChunk && v < bank.values; v += kChains) {
      const double* line = space.decoded + (v - begin + chain) * (columns + 1);
      const float* values = query + (v + chain) * padded_width;
      const bool present = v + chain < bank.values;
      for (int64_t s = part; s < columns; s += kShiftLanes) {
        double sum = space.correlation[s * kChains + chain];
        for (int64_t x = 0, at = s; x < width; ++x, at = at + 1 < columns ? at + 1 : 0)
          sum += (present ? static_cast<double>(values[x]) : 0.0) * line[at];
        space.correlation[s * kChains + chain] = sum;
        space.energy[s * kChains + chain] += line[s] * line[s];
      }
    }
    sync_warp();
  }
  // Sums over the chains; lanes whose shift is past the end take part in the shuffles with what is there.
  for (int64_t first = 0; first < columns; first += kShiftLanes) {
    const int64_t s = first + part < columns ? first + part : columns - 1;
    const double correlation = chain_sum(space.correlation[s * kChains + chain]);
    const double energy = chain_sum(space.energy[s * kChains + chain]);
    sync_warp();
    if (chain == 0 && first + part < columns) {
      space.correlation[s * kChains] = correlation;
      space.column_energy[s] = energy;
    }
  }
  sync_warp();
  double strip_energy = 0.0;
  for (int64_t n = 0; n < columns; ++n) strip_energy += space.column_energy[n];

  const bool broken = !is_finite(strip_energy) || !is_finite(energy_of_query);
  double best = -1.0, score_at_best = 0.0;
  int32_t shift = -1;
  for (int64_t s = lane; s < columns; s += 32) {
    double window_energy = 0.0;
    for (int64_t x = 0, at = s; x < width; ++x, at = at + 1 < columns ? at + 1 : 0)
      window_energy += space.column_energy[at];
    const bool usable = window_energy > 1e-6 * strip_energy && energy_of_query > 0.0;
    const double product = space.correlation[s * kChains];
    const double cosine = usable ? product / sqrt(energy_of_query * window_energy) : 0.0;
    if (curve != nullptr) curve[s] = broken ? __uint_as_float(0x7fc00000u) : static_cast<float>(cosine);
    const double score = by == Decides::kDot ? product : cosine, key = by == Decides::kCosine ? cosine : product;
    if (shift < 0 || key > best) best = key, score_at_best = score, shift = static_cast<int32_t>(s);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    const double other = shuffle_xor(best, distance), other_score = shuffle_xor(score_at_best, distance);
    const int32_t other_shift = shuffle_xor(shift, distance);
    if (other_shift >= 0 && (shift < 0 || other > best || (other == best && other_shift < shift)))
      best = other, score_at_best = other_score, shift = other_shift;
  }
  sync_warp();
  if (broken) return {__uint_as_float(0x7fc00000u), 0};
  return {static_cast<float>(score_at_best), shift};
}

// Launches what gives energy[b] of every query of `p`; strip_bank.cu.
Status launch_query_energies(const StripScoreParams& p, double* energy, Stream stream);

}  // namespace geoloc_fast::cuda
