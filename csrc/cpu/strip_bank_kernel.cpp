// SPDX-License-Identifier: Apache-2.0
#include "cpu/strip_exact.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

void pack_strip(const StripBankView& view, const double* circle, const float* strip, uint8_t* block, int64_t lane,
                f64x8* scratch) {
  const int64_t columns = view.columns;
  f64x8 *in = scratch, *planes = in + columns, *energies = planes + columns, *rest = energies + columns;
  for (int64_t n = 0; n < columns; ++n) energies[n] = f64x8{};
  for (int64_t begin = 0; begin < view.values; begin += 8) {
    const int64_t present = view.values - begin < 8 ? view.values - begin : 8;
    for (int64_t n = 0; n < columns; ++n)
      for (int64_t c = 0; c < 8; ++c) in[n][c] = c < present ? strip[(begin + c) * columns + n] : 0.0;
    planes_of(in, columns, circle, planes, rest);
    for (int64_t p = 0; p < columns; ++p)
      for (int64_t c = 0; c < present; ++c) {
        const int64_t at = begin + c;
        uint8_t* word = block + ((p * view.words + (view.bf16 ? at / 2 : at)) * kStripLanes + lane) * 4;
        const float single = static_cast<float>(planes[p][c]);
        if (view.bf16) {
          const BFloat16 half = from_float<BFloat16>(single);
          std::memcpy(word + (at % 2) * 2, &half, sizeof half);
          planes[p][c] = to_float(half);
        } else {
          std::memcpy(word, &single, sizeof single);
          planes[p][c] = single;
        }
      }
    columns_of(reinterpret_cast<double*>(planes), 8, columns, circle, in, rest);
    for (int64_t n = 0; n < columns; ++n) energies[n] += in[n] * in[n];
  }
  uint8_t* out = block + columns * view.words * kStripLanes * 4 + lane * 4;
  for (int64_t n = 0; n < columns; ++n) {
    const float energy = static_cast<float>(lane_sum(energies[n]));
    std::memcpy(out + n * kStripLanes * 4, &energy, sizeof energy);
  }
}

}  // namespace

int64_t strip_bank_scratch(int64_t columns) {
  return static_cast<int64_t>(sizeof(f64x8)) * (exact_scratch(columns) + kChunkVectors * columns);
}

void strip_pack(const StripBankView& view, uint8_t* blocks, const float* strips, const double* circle, void* scratch,
                int64_t first_block, int64_t last_block) {
  const int64_t strip_values = view.values * view.columns;
  for (int64_t b = first_block; b < last_block; ++b) {
    uint8_t* block = blocks + b * view.block_bytes;
    std::memset(block, 0, static_cast<size_t>(view.block_bytes));
    const int64_t left = view.count - b * kStripLanes, lanes = left < kStripLanes ? left : kStripLanes;
    for (int64_t lane = 0; lane < lanes; ++lane)
      pack_strip(view, circle, strips + (b * kStripLanes + lane) * strip_values, block, lane,
                 static_cast<f64x8*>(scratch));
  }
}

void strip_unpack(const StripBankView& view, const int64_t* index, float* out, const double* circle, void* scratch,
                  int64_t first, int64_t last) {
  const int64_t columns = view.columns;
  f64x8* decoded = static_cast<f64x8*>(scratch);
  for (int64_t i = first; i < last; ++i) {
    float* strip = out + i * view.values * columns;
    for (int64_t begin = 0; begin < view.values; begin += kChunk) {
      const int64_t present = view.values - begin < kChunk ? view.values - begin : kChunk;
      decode(view, index[i], begin, circle, decoded, columns, decoded + kChunkVectors * columns);
      for (int64_t c = 0; c < present; ++c)
        for (int64_t n = 0; n < columns; ++n)
          strip[(begin + c) * columns + n] = static_cast<float>(decoded[c / 8 * columns + n][c % 8]);
    }
  }
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
