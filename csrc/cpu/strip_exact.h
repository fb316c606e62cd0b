// Float64 pieces of packing, unpacking and scoring, with one order of sums for every instruction set: lanes are
// channels. For kernel sources compiled with -ffp-contract=off; like simd.h, nothing here is shared between builds.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/azimuth_transform.h"
#include "common/half.h"
#include "cpu/simd.h"
#include "geoloc_fast/strip_bank.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

typedef double f64x8 __attribute__((vector_size(64)));
typedef double f64x8_in_memory __attribute__((vector_size(64), may_alias));
typedef float f32x8 __attribute__((vector_size(32)));

// Channels worked on at a time: bounds the scratch memory whatever K is.
constexpr int64_t kChunk = 32, kChunkVectors = kChunk / 8;

// f64x8 of scratch memory that `decode` and `encode` take.
constexpr int64_t exact_scratch(int64_t columns) {
  return (kChunkVectors + 2) * columns + 8 + transform_scratch(columns);
}

GEOLOC_FAST_INLINE f64x8 through_float(f64x8 value) {
  return __builtin_convertvector(__builtin_convertvector(value, f32x8), f64x8);
}
GEOLOC_FAST_INLINE bool is_finite(double value) { return value - value == 0.0; }
GEOLOC_FAST_INLINE double lane_sum(f64x8 a) {
  return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

// The factor between plane p and the transforms, which do not scale.
struct PlaneScale {
  double ends, middle;  // 1/sqrt(W) of plane 0 and, for an even W, the last; sqrt(2/W)
};
static inline PlaneScale plane_scale(int64_t columns) {
  return {std::sqrt(1.0 / static_cast<double>(columns)), std::sqrt(2.0 / static_cast<double>(columns))};
}

// Columns of 8 channels from their planes, which are `stride` doubles apart.
static inline void columns_of(const double* planes, int64_t stride, int64_t columns, const double* circle, f64x8* out,
                              f64x8* scratch) {
  auto plane = [&](int64_t p) { return *reinterpret_cast<const f64x8_in_memory*>(planes + p * stride); };
  const PlaneScale scale = plane_scale(columns);
  f64x8 *re = scratch, *im = re + columns / 2 + 1;
  re[0] = plane(0) * scale.ends;
  for (int64_t f = 1; f <= (columns - 1) / 2; ++f) {
    re[f] = plane(2 * f - 1) * scale.middle;
    im[f] = plane(2 * f) * scale.middle;
  }
  if (columns % 2 == 0) re[columns / 2] = plane(columns - 1) * scale.ends;
  switch (columns) {
    case 16: return inverse_fixed<16, double>(re, im, out, 1);
    case 32: return inverse_fixed<32, double, 1, 32>(re, im, out, 1, circle);
    case 64: return inverse_fixed<64, double>(re, im, out, 1);
    default: return inverse_any(columns, re, im, out, 1, circle, columns, im + columns / 2 + 1);
  }
}

// And back, planes side by side.
static inline void planes_of(const f64x8* in, int64_t columns, const double* circle, f64x8* planes, f64x8* scratch) {
  const PlaneScale scale = plane_scale(columns);
  f64x8 *re = scratch, *im = re + columns / 2 + 1;
  forward_any(columns, in, 1, re, im, circle, columns, im + columns / 2 + 1);
  planes[0] = re[0] * scale.ends;
  for (int64_t f = 1; f <= (columns - 1) / 2; ++f) {
    planes[2 * f - 1] = re[f] * scale.middle;
    planes[2 * f] = im[f] * scale.middle;
  }
  if (columns % 2 == 0) planes[columns - 1] = re[columns / 2] * scale.ends;
}

// Planes of channels [begin, begin + kChunk) of one strip as [W][kChunk]; channels beyond K are 0.
static inline void gather_planes(const StripBankView& bank, int64_t row, int64_t begin, double* planes) {
  const int64_t present = bank.values - begin < kChunk ? bank.values - begin : kChunk;
  const uint8_t* first = bank.blocks + row / kStripLanes * bank.block_bytes +
                         (begin / (bank.bf16 ? 2 : 1) * kStripLanes + row % kStripLanes) * 4;
  for (int64_t p = 0; p < bank.columns; ++p, planes += kChunk) {
    const uint8_t* word = first + p * bank.words * kStripLanes * 4;
    uint32_t bits;
    int64_t c = 0;
    if (bank.bf16)
      for (; c < present; c += 2, word += 4 * kStripLanes) {
        std::memcpy(&bits, word, sizeof bits);
        planes[c] = half_detail::as_float(bits << 16);
        planes[c + 1] = c + 1 < present ? half_detail::as_float(bits & 0xffff0000u) : 0.0;
      }
    else
      for (; c < present; ++c, word += 4 * kStripLanes) {
        std::memcpy(&bits, word, sizeof bits);
        planes[c] = half_detail::as_float(bits);
      }
    for (; c < kChunk; ++c) planes[c] = 0.0;
  }
}

// Columns of channels [begin, begin + kChunk) of one strip, as they are stored: vector v of column n lands at
// out[v * stride + n], its values rounded to float32.
static inline void decode(const StripBankView& bank, int64_t row, int64_t begin, const double* circle, f64x8* out,
                          int64_t stride, f64x8* scratch) {
  double* planes = reinterpret_cast<double*>(scratch);
  gather_planes(bank, row, begin, planes);
  for (int64_t v = 0; v < kChunkVectors && begin + 8 * v < bank.values; ++v) {
    columns_of(planes + 8 * v, kChunk, bank.columns, circle, out + v * stride, scratch + kChunkVectors * bank.columns);
    for (int64_t n = 0; n < bank.columns; ++n) out[v * stride + n] = through_float(out[v * stride + n]);
  }
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
