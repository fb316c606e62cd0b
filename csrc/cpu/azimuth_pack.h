// How azimuth kernels take strips in: converted to fp32, scaled by a power of two, columns one after another.
//
//   [C, H, columns], any strides and dtype  ->  rows [K][columns]  ->  columns [x][K'],   K' = K to a multiple of 16
//
// For kernel sources only.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/half.h"
#include "cpu/azimuth_plan.h"
#include "cpu/lanes.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

// One strip or query as packed: value = unit * packed value.
struct Packed {
  bool broken;    // holds NaN or Inf; packed as zeros
  float unit;     // a power of two
  float inverse;  // 1 / unit
};

GEOLOC_FAST_INLINE f32x16 load16_floats(const float* from) { return load16(from); }
GEOLOC_FAST_INLINE u32x16 load16_words(const uint16_t* from) {
  return __builtin_convertvector(*reinterpret_cast<const u16x16_unaligned*>(from), u32x16);
}
GEOLOC_FAST_INLINE f32x16 load16_floats(const BFloat16* from) {
  return reinterpret_cast<f32x16>(load16_words(&from->bits) << 16);
}
GEOLOC_FAST_INLINE f32x16 load16_floats(const Float16* from) {
  const u32x16 words = load16_words(&from->bits);
  const u32x16 magnitude = words & 0x7fffu;
  // Times 2^112 moves the exponent bias from 15 to 127 and is exact for subnormals too.
  const f32x16 scaled = reinterpret_cast<f32x16>(magnitude << 13) * 5.192296858534828e33f;
  const i32x16 special = reinterpret_cast<i32x16>(magnitude) >= 0x7c00;
  const u32x16 bits = special ? (magnitude << 13 | 0x7f800000u) : reinterpret_cast<u32x16>(scaled);
  return reinterpret_cast<f32x16>(bits | (words & 0x8000u) << 16);
}
// The first n of sixteen neighbours, n < 16, and zeros. Reads no further.
template <typename T>
GEOLOC_FAST_INLINE f32x16 load_part(const T* from, int64_t n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  const __mmask16 first = static_cast<__mmask16>((1u << n) - 1u);
  if constexpr (sizeof(T) == 4) {
    return reinterpret_cast<f32x16>(_mm512_maskz_loadu_ps(first, from));
  } else {
    T padded[16];
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(padded), _mm256_maskz_loadu_epi16(first, from));
    return load16_floats(padded);
  }
#else
  float padded[16] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = to_float(from[i]);
  return load16(padded);
#endif
}

// rows[k * row_stride + x], 0 for columns from `present` on and for the rows from K to the next multiple of 16;
// returns the largest magnitude as bits.
template <typename T>
static uint32_t load_rows(const StripTensor& from, int64_t item, int64_t present, float* rows, int64_t row_stride) {
  const T* data = static_cast<const T*>(from.data) + item * from.stride[0];
  const int64_t values = from.channels * from.height;
  const int64_t step = from.stride[3];
  u32x16 largest{};
  for (int64_t c = 0, k = 0; c < from.channels; ++c)
    for (int64_t h = 0; h < from.height; ++h, ++k) {
      const T* row = data + c * from.stride[1] + h * from.stride[2];
      float* to = rows + k * row_stride;
      for (int64_t x = 0; x < row_stride; x += 16) {
        f32x16 value{};
        if (step == 1 && x < present) {
          value = x + 16 <= present ? load16_floats(row + x) : load_part(row + x, present - x);
        } else if (x < present) {
          float strided[16] = {};
          for (int64_t i = 0; i < min_of(16, present - x); ++i) strided[i] = to_float(row[(x + i) * step]);
          value = load16(strided);
        }
        store16(to + x, value);
        const u32x16 bits = reinterpret_cast<u32x16>(value) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
      }
    }
  for (int64_t i = values * row_stride; i < round_up(values, 16) * row_stride; i += 16) store16(rows + i, f32x16{});
  uint32_t result = 0;
  for (int lane = 0; lane < 16; ++lane) result = largest[lane] > result ? largest[lane] : result;
  return result;
}

// Loads an item into rows (row_stride a multiple of 16), scaled so that its largest magnitude lies in [1, 4).
static inline Packed pack_rows(const StripTensor& from, int64_t item, int64_t present, float* rows,
                               int64_t row_stride) {
  uint32_t largest = 0;
  switch (from.dtype) {
    case DType::kFloat32: largest = load_rows<float>(from, item, present, rows, row_stride); break;
    case DType::kBFloat16: largest = load_rows<BFloat16>(from, item, present, rows, row_stride); break;
    case DType::kFloat16: largest = load_rows<Float16>(from, item, present, rows, row_stride); break;
    case DType::kUInt8: break;  // refused before
  }
  const int64_t count = round_up(from.channels * from.height, 16) * row_stride;
  if (largest >= 0x7f800000u) {
    for (int64_t i = 0; i < count; i += 16) store16(rows + i, f32x16{});
    return {true, 1.0f, 1.0f};
  }
  if (largest == 0) return {false, 1.0f, 1.0f};
  uint32_t exponent = largest >> 23;  // biased by 127
  exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
  const float unit = half_detail::as_float(exponent << 23), inverse = half_detail::as_float((254 - exponent) << 23);
  for (int64_t i = 0; i < count; i += 16) store16(rows + i, load16(rows + i) * inverse);
  return {false, unit, inverse};
}

// columns[x * padded + k] from rows; `padded` a multiple of 16, `count` columns.
static inline void rows_to_columns(const float* rows, int64_t row_stride, int64_t padded, int64_t count,
                                   float* columns) {
  float block[256] __attribute__((aligned(64)));
  for (int64_t k = 0; k < padded; k += 16)
    for (int64_t x = 0; x < count; x += 16) {
      const float* from = rows + k * row_stride + x;
      if (x + 16 <= count) {
        transpose16(from, row_stride, columns + x * padded + k, padded);
        continue;
      }
      transpose16(from, row_stride, block, 16);
      for (int64_t i = 0; x + i < count; ++i) store16(columns + (x + i) * padded + k, load16(block + i * 16));
    }
}

// A gradient leaves: rows[k][x] (contiguous, `count` columns, K rows) from columns[x * padded + k].
static inline void columns_to_rows(const float* columns, int64_t padded, int64_t values, int64_t count, float* rows) {
  float block[256] __attribute__((aligned(64)));
  for (int64_t k = 0; k < values; k += 16)
    for (int64_t x = 0; x < count; x += 16) {
      const int64_t high = min_of(16, values - k), wide = min_of(16, count - x);
      const float* from[16];
      for (int64_t i = 0; i < 16; ++i) from[i] = columns + min_of(x + i, count - 1) * padded + k;
      if (high == 16 && wide == 16) {
        transpose16(from, rows + k * count + x, count);
        continue;
      }
      transpose16(from, block, 16);
      for (int64_t i = 0; i < high; ++i)
        for (int64_t j = 0; j < wide; ++j) rows[(k + i) * count + x + j] = block[i * 16 + j];
    }
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
