// SPDX-License-Identifier: Apache-2.0
#include "cpu/strip_exact.h"
#include "cpu/threads.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

uint32_t bf16_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// Rounds `value` to what the bank stores; `bits` are those of the word's half or whole.
double stored(double value, bool bf16, uint32_t* bits) {
  const float rounded = static_cast<float>(value);
  if (bf16) {
    *bits = bf16_bits(rounded);
    return float_from_bits(*bits << 16);
  }
  std::memcpy(bits, &rounded, sizeof *bits);
  return rounded;
}

void pack_strip(const StripBankView& view, const StripBasis& basis, const float* strip, uint8_t* block, int64_t lane,
                double* scratch) {
  const int64_t columns = view.columns, padded = basis.padded;
  double* in = scratch;
  double* planes = in + kChunk * columns;
  double* energies = planes + kChunk * padded;
  for (int64_t n = 0; n < padded; ++n) energies[n] = 0.0;
  for (int64_t begin = 0; begin < view.values; begin += kChunk) {
    const int64_t present = view.values - begin < kChunk ? view.values - begin : kChunk;
    for (int64_t i = 0; i < kChunk * columns; ++i) in[i] = i < present * columns ? strip[begin * columns + i] : 0.0;
    transform(in, columns, kChunk, columns, basis.columns_by_plane, padded, planes, padded);
    for (int64_t c = 0; c < present; ++c)
      for (int64_t p = 0; p < columns; ++p) {
        uint32_t bits;
        in[c * columns + p] = stored(planes[c * padded + p], view.bf16, &bits);
        const int64_t at = begin + c;
        uint8_t* word = block + ((p * view.words + (view.bf16 ? at / 2 : at)) * kStripLanes + lane) * 4;
        if (view.bf16) {
          const uint16_t half = static_cast<uint16_t>(bits);
          std::memcpy(word + (at % 2) * 2, &half, sizeof half);
        } else {
          std::memcpy(word, &bits, sizeof bits);
        }
      }
    transform(in, columns, kChunk, columns, basis.planes_by_column, padded, planes, padded);
    for (int64_t c = 0; c < present; ++c)
      for (int64_t n = 0; n < padded; n += 8) {
        const f64x8 column = load8(planes + c * padded + n);
        store8(energies + n, load8(energies + n) + column * column);
      }
  }
  uint8_t* out = block + columns * view.words * kStripLanes * 4 + lane * 4;
  for (int64_t n = 0; n < columns; ++n) {
    const float energy = static_cast<float>(energies[n]);
    std::memcpy(out + n * kStripLanes * 4, &energy, sizeof energy);
  }
}

}  // namespace

int64_t strip_bank_scratch(int64_t columns) { return kChunk * (columns + strip_padded(columns)) + strip_padded(columns); }

void strip_pack(const StripBankView& view, uint8_t* blocks, const float* strips, const StripBasis& basis,
                double* scratch, int64_t first_block, int64_t last_block) {
  const int64_t strip_values = view.values * view.columns;
  for (int64_t b = first_block; b < last_block; ++b) {
    uint8_t* block = blocks + b * view.block_bytes;
    std::memset(block, 0, static_cast<size_t>(view.block_bytes));
    const int64_t left = view.count - b * kStripLanes, lanes = left < kStripLanes ? left : kStripLanes;
    for (int64_t lane = 0; lane < lanes; ++lane)
      pack_strip(view, basis, strips + (b * kStripLanes + lane) * strip_values, block, lane, scratch);
  }
}

void strip_unpack(const StripBankView& view, const int64_t* index, float* out, const StripBasis& basis,
                  double* scratch, int64_t first, int64_t last) {
  const int64_t columns = view.columns, padded = basis.padded;
  double* planes = scratch;
  double* decoded = planes + kChunk * columns;
  for (int64_t i = first; i < last; ++i) {
    float* strip = out + i * view.values * columns;
    for (int64_t begin = 0; begin < view.values; begin += kChunk) {
      const int64_t present = view.values - begin < kChunk ? view.values - begin : kChunk;
      gather_planes(view, index[i], begin, planes);
      transform(planes, columns, kChunk, columns, basis.planes_by_column, padded, decoded, padded);
      for (int64_t c = 0; c < present; ++c)
        for (int64_t n = 0; n < columns; ++n)
          strip[(begin + c) * columns + n] = static_cast<float>(decoded[c * padded + n]);
    }
  }
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
