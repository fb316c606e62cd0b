// Kernels of strip_pack, strip_unpack and strip_score. Formulas: geoloc_fast/strip_bank.h and strip_score.h.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cuda/strip_exact.cuh"

namespace geoloc_fast::cuda {

// Packing transforms forward from a table whatever W is; lane = channel, so a strip's work space is in global memory.
__global__ void __launch_bounds__(32 * kExactWarps, 1)
    strip_pack_kernel(const StripBankView view, uint8_t* blocks, const float* strips, const double* circle,
                      double* space_memory) {
  const int64_t columns = view.columns, rows = (view.count + kStripLanes - 1) / kStripLanes * kStripLanes;
  const int lane = lane_id(), chain = lane % kChains, part = lane / kChains;
  const ExactSpace space = warp_space<0>(space_memory, columns);
  const double ends = plane_ends(columns), middle = plane_middle(columns);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kExactWarps;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kExactWarps + threadIdx.x / 32; r < rows; r += step) {
    uint8_t* row = blocks + r / kStripLanes * view.block_bytes + r % kStripLanes * 4;
    if (r >= view.count) {
      for (int64_t i = lane; i < columns * (view.words + 1); i += 32) store_vector(row + i * kStripLanes * 4, 0u);
      continue;
    }
    for (int64_t n = part; n < columns; n += kShiftLanes) space.energy[n * kChains + chain] = 0.0;
    for (int64_t begin = 0; begin < view.values; begin += kChunk) {
      const int64_t c = begin + lane;
      const bool present = c < view.values;
      double *in = space.decoded + lane * (columns + 1), *re = space.planes, *im = re + columns / 2 + 1;
      for (int64_t n = 0; n < columns; ++n)
        in[n] = present ? static_cast<double>(strips[(r * view.values + c) * columns + n]) : 0.0;
      forward_any(columns, in, 1, re, im, circle, columns, im + columns / 2 + 1);
      // A bfloat16 shares its word with the next channel's: the even lane writes for both.
      auto put = [&](int64_t p, double value) {
        const float rounded = static_cast<float>(value);
        const uint32_t bits = view.bf16 ? bf16_bits(rounded) : __float_as_uint(rounded);
        const uint32_t other = shuffle_down(bits, 1);
        const int64_t word = p * view.words + (view.bf16 ? c / 2 : c);
        if (present && !view.bf16) store_vector(row + word * kStripLanes * 4, bits);
        if (present && view.bf16 && c % 2 == 0)
          store_vector(row + word * kStripLanes * 4, bits | (c + 1 < view.values ? other << 16 : 0u));
        return static_cast<double>(view.bf16 ? __uint_as_float(bits << 16) : rounded);
      };
      double* planes = im + columns / 2 + 1;  // as stored; the transform's scratch is free again
      planes[0] = put(0, re[0] * ends);
      for (int64_t f = 1; f <= (columns - 1) / 2; ++f) {
        planes[2 * f - 1] = put(2 * f - 1, re[f] * middle);
        planes[2 * f] = put(2 * f, im[f] * middle);
      }
      if (columns % 2 == 0) planes[columns - 1] = put(columns - 1, re[columns / 2] * ends);
      // Back to columns, in place of what came in: only the energies need them.
      columns_of<0>(
          columns, circle, planes + columns, [&](int64_t p) { return planes[p]; },
          [&](int64_t n, double value) { in[n] = value; });
      sync_warp();
      for (int64_t v = 0; v < kChunk && begin + v < view.values; v += kChains)
        for (int64_t n = part; n < columns; n += kShiftLanes) {
          const double value = space.decoded[(v + chain) * (columns + 1) + n];
          space.energy[n * kChains + chain] += value * value;
        }
      sync_warp();
    }
    for (int64_t first = 0; first < columns; first += kShiftLanes) {
      const int64_t n = first + part < columns ? first + part : columns - 1;
      const double energy = chain_sum(space.energy[n * kChains + chain]);
      if (chain == 0 && first + part < columns)
        store_vector(row + (columns * view.words + n) * kStripLanes * 4, static_cast<float>(energy));
    }
    sync_warp();
  }
}

template <int kColumns>
__global__ void __launch_bounds__(32 * kExactWarps, 1)
    strip_unpack_kernel(const StripBankView view, const int64_t* index, int64_t n, float* out, const double* circle,
                        double* space_memory) {
  const int64_t columns = kColumns ? kColumns : view.columns;
  const ExactSpace space = warp_space<kColumns>(space_memory, columns);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kExactWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kExactWarps + threadIdx.x / 32; i < n; i += step) {
    const bool inside = index[i] >= 0 && index[i] < view.count;
    float* strip = out + i * view.values * columns;
    for (int64_t begin = 0; begin < view.values; begin += kChunk) {
      if (inside) decode<kColumns>(view, row_of(view, index[i]), begin, circle, space);
      const int64_t channels = view.values - begin < kChunk ? view.values - begin : kChunk;
      for (int64_t at = lane_id(); at < channels * columns; at += 32)
        strip[begin * columns + at] =
            inside ? static_cast<float>(space.decoded[at / columns * (columns + 1) + at % columns])
                   : __uint_as_float(0x7fc00000u);
      sync_warp();
    }
  }
}

// energy[b] of every query: a warp each.
__global__ void __launch_bounds__(32 * kExactWarps, 1) strip_query_kernel(const StripScoreParams p, double* energy) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kExactWarps;
  for (int64_t b = static_cast<int64_t>(blockIdx.x) * kExactWarps + threadIdx.x / 32; b < p.batch; b += step) {
    const double sum = query_energy(p.query + b * p.bank.values * p.padded_width, p.bank.values, p.padded_width,
                                    width_of(p.width, b, p.padded_width));
    if (lane_id() == 0) energy[b] = sum;
  }
}

template <int kColumns>
__global__ void __launch_bounds__(32 * kExactWarps, 1)
    strip_score_kernel(const StripScoreParams p, const double* energy, double* space_memory) {
  const ExactSpace space = warp_space<kColumns>(space_memory, p.bank.columns);
  const int64_t step = static_cast<int64_t>(gridDim.x) * kExactWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kExactWarps + threadIdx.x / 32; i < p.batch * p.n; i += step) {
    const int64_t b = i / p.n, row = p.index[i];
    ExactScore found{__uint_as_float(row == -1 ? 0xff800000u : 0x7fc00000u), -1};
    float* curve = p.curve == nullptr ? nullptr : p.curve + i * p.bank.columns;
    if (row >= 0 && row < p.bank.count)
      found = score_pair<kColumns>(p.bank, p.circle, p.query + b * p.bank.values * p.padded_width, p.padded_width,
                                   width_of(p.width, b, p.padded_width), energy[b], decides(p.cosine, p.dot), row,
                                   space, curve);
    else
      for (int64_t s = lane_id(); curve != nullptr && s < p.bank.columns; s += 32) curve[s] = found.score;
    if (lane_id() == 0 && curve == nullptr) {
      p.score[i] = found.score;
      p.shift[i] = found.shift;
    }
  }
}

}  // namespace geoloc_fast::cuda
