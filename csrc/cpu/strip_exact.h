// Float64 pieces of packing, unpacking and scoring, with one order of sums for every instruction set. For kernel
// sources compiled with -ffp-contract=off; like simd.h, nothing here is shared between builds.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/simd.h"
#include "geoloc_fast/strip_bank.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

typedef double f64x8 __attribute__((vector_size(64)));
typedef double f64x8_unaligned __attribute__((vector_size(64), aligned(8), may_alias));
typedef float f32x8 __attribute__((vector_size(32)));

// Channels decoded at a time: a multiple of 4, which bounds the scratch memory whatever K is.
constexpr int64_t kChunk = 32;

GEOLOC_FAST_INLINE f64x8 load8(const double* from) { return *reinterpret_cast<const f64x8_unaligned*>(from); }
GEOLOC_FAST_INLINE void store8(double* to, f64x8 value) { *reinterpret_cast<f64x8_unaligned*>(to) = value; }
GEOLOC_FAST_INLINE f64x8 splat8(double value) { return f64x8{} + value; }
GEOLOC_FAST_INLINE f64x8 through_float(f64x8 value) {
  return __builtin_convertvector(__builtin_convertvector(value, f32x8), f64x8);
}
GEOLOC_FAST_INLINE bool is_finite(double value) { return value - value == 0.0; }

// out[i][j] = sum_r in[i][r] matrix[r][j] for 4 rows i and 16 or 8 columns j: eight chains hide the latency of +.
template <int kVectors>
GEOLOC_FAST_INLINE void transform_tile(const double* in, int64_t in_stride, int64_t terms, const double* matrix,
                                       int64_t padded, double* out, int64_t out_stride) {
  f64x8 sum[4][kVectors] = {};
  for (int64_t r = 0; r < terms; ++r)
    for (int v = 0; v < kVectors; ++v) {
      const f64x8 row = load8(matrix + r * padded + 8 * v);
      for (int i = 0; i < 4; ++i) sum[i][v] += splat8(in[i * in_stride + r]) * row;
    }
  for (int i = 0; i < 4; ++i)
    for (int v = 0; v < kVectors; ++v) store8(out + i * out_stride + 8 * v, sum[i][v]);
}

// `rows` (a multiple of 4) rows of `terms` values times a matrix [terms][padded].
static inline void transform(const double* in, int64_t in_stride, int64_t rows, int64_t terms, const double* matrix,
                             int64_t padded, double* out, int64_t out_stride) {
  for (int64_t i = 0; i < rows; i += 4) {
    int64_t j = 0;
    for (; j + 16 <= padded; j += 16)
      transform_tile<2>(in + i * in_stride, in_stride, terms, matrix + j, padded, out + i * out_stride + j, out_stride);
    for (; j < padded; j += 8)
      transform_tile<1>(in + i * in_stride, in_stride, terms, matrix + j, padded, out + i * out_stride + j, out_stride);
  }
}

static inline float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Planes of channels [begin, begin + kChunk) of one strip as [kChunk][W]; channels beyond K are 0.
static inline void gather_planes(const StripBankView& bank, int64_t row, int64_t begin, double* planes) {
  const int64_t per_word = bank.bf16 ? 2 : 1, lane = row % kStripLanes;
  const int64_t present = bank.values - begin < kChunk ? bank.values - begin : kChunk;
  const uint8_t* block = bank.blocks + row / kStripLanes * bank.block_bytes;
  for (int64_t p = 0; p < bank.columns; ++p) {
    const uint8_t* word = block + ((p * bank.words + begin / per_word) * kStripLanes + lane) * 4;
    for (int64_t c = 0; c < kChunk; c += per_word, word += 4 * kStripLanes) {
      if (c >= present) {
        for (int64_t i = 0; i < per_word; ++i) planes[(c + i) * bank.columns + p] = 0.0;
        continue;
      }
      uint32_t bits;
      std::memcpy(&bits, word, sizeof bits);
      if (bank.bf16) {
        planes[c * bank.columns + p] = float_from_bits(bits << 16);
        planes[(c + 1) * bank.columns + p] = c + 1 < present ? float_from_bits(bits & 0xffff0000u) : 0.0;
      } else {
        planes[c * bank.columns + p] = float_from_bits(bits);
      }
    }
  }
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
