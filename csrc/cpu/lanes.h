// Vectors beyond simd.h: comparisons, exp and log, 16 x 16 transposes, sums in float64. For kernel sources only.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/simd.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef float f32x4_unaligned __attribute__((vector_size(16), aligned(4), may_alias));
typedef float f32x8 __attribute__((vector_size(32)));
typedef float f32x8_unaligned __attribute__((vector_size(32), aligned(4), may_alias));
typedef double f64x8 __attribute__((vector_size(64)));
typedef int64_t i64x8_unaligned __attribute__((vector_size(64), aligned(8), may_alias));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef int32_t i32x16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint16_t u16x16_unaligned __attribute__((vector_size(32), aligned(2), may_alias));

GEOLOC_FAST_INLINE i32x16 load16(const int32_t* from) { return *reinterpret_cast<const i32x16_unaligned*>(from); }
GEOLOC_FAST_INLINE void store16(int32_t* to, i32x16 value) { *reinterpret_cast<i32x16_unaligned*>(to) = value; }
GEOLOC_FAST_INLINE i32x16 splat_int(int32_t value) { return i32x16{} + value; }
GEOLOC_FAST_INLINE f32x16 pick(i32x16 mask, f32x16 yes, f32x16 no) { return mask ? yes : no; }
GEOLOC_FAST_INLINE i32x16 pick(i32x16 mask, i32x16 yes, i32x16 no) { return mask ? yes : no; }

// The larger one; `b` where `a` is NaN.
GEOLOC_FAST_INLINE f32x16 larger(f32x16 a, f32x16 b) { return a > b ? a : b; }

GEOLOC_FAST_INLINE bool any(i32x16 mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#else
  int32_t set = 0;
  for (int lane = 0; lane < 16; ++lane) set |= mask[lane];
  return set != 0;
#endif
}

// e^x for x <= 0 to 1.2e-7 relative; below -87 it stays at e^-87; NaN stays NaN.
GEOLOC_FAST_INLINE f32x16 exp_of_negative(f32x16 x) {
  x = pick(x < -87.0f, splat(-87.0f), x);
  const f32x16 shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the whole part lands in the low bits
  const f32x16 whole = shifted - 12582912.0f;
  const f32x16 r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  f32x16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const i32x16 power = (reinterpret_cast<i32x16>(shifted) - 0x4b400000 + 127) << 23;
  return p * reinterpret_cast<f32x16>(power);
}

// ln x for normal x > 0 to 2e-7 relative.
GEOLOC_FAST_INLINE f32x16 log_of_positive(f32x16 x) {
  const i32x16 bits = reinterpret_cast<i32x16>(x);
  // Mantissa in [sqrt(1/2), sqrt(2)).
  const i32x16 exponent = (bits - 0x3f3504f3) >> 23;
  const f32x16 m = reinterpret_cast<f32x16>(bits - (exponent << 23)) - 1.0f;
  const f32x16 e = __builtin_convertvector(exponent, f32x16);
  const f32x16 z = m * m;
  f32x16 p = m * 7.0376836292e-2f - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  p = p * m * z;
  p = p + e * -2.12194440e-4f;
  p = p - 0.5f * z;
  return m + p + e * 0.693359375f;
}

GEOLOC_FAST_INLINE f64x8 low_doubles(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const f32x8_unaligned*>(from), f64x8);
}

// In one order for every instruction set.
GEOLOC_FAST_INLINE double sum_of(f64x8 v) { return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])); }

// Inner product of n float32 values, n a multiple of 16. Products are exact in float64 and the order is fixed, so
// the bits are the same with and without fused multiply-add.
GEOLOC_FAST_INLINE double exact_product(const float* a, const float* b, int64_t n) {
  f64x8 sum0{}, sum1{};
  for (int64_t i = 0; i < n; i += 16) {
    sum0 += low_doubles(a + i) * low_doubles(b + i);
    sum1 += low_doubles(a + i + 8) * low_doubles(b + i + 8);
  }
  return sum_of(sum0 + sum1);
}

#if defined(__AVX512F__)
#if defined(__clang__)
#define GEOLOC_FAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GEOLOC_FAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, i32x16{__VA_ARGS__})
#endif
// out[j * out_stride + i] = rows[i][j]
GEOLOC_FAST_INLINE void transpose16(const float* const* rows, float* out, int64_t out_stride) {
  f32x16 v[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = load16(rows[i]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[i] = GEOLOC_FAST_SHUFFLE(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    t[i + 8] = GEOLOC_FAST_SHUFFLE(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  }
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) {
    const int i = n / 4 * 8 + n % 4;
    v[i] = GEOLOC_FAST_SHUFFLE(t[i], t[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    v[i + 4] = GEOLOC_FAST_SHUFFLE(t[i], t[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  }
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) {
    const int i = n / 2 * 4 + n % 2;
    t[i] = GEOLOC_FAST_SHUFFLE(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    t[i + 2] = GEOLOC_FAST_SHUFFLE(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
#pragma GCC unroll 8
  for (int n = 0; n < 8; ++n) {
    const int i = n * 2;
    v[i] = GEOLOC_FAST_SHUFFLE(t[i], t[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    v[i + 1] = GEOLOC_FAST_SHUFFLE(t[i], t[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) store16(out + i * out_stride, v[i]);
}
#undef GEOLOC_FAST_SHUFFLE
#else
// out[j * out_stride + i] = rows[i][j], in blocks of 4 x 4.
static inline void transpose16(const float* const* rows, float* out, int64_t out_stride) {
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 16; j += 4) {
      f32x4 v[4], t[4];
      for (int n = 0; n < 4; ++n) v[n] = *reinterpret_cast<const f32x4_unaligned*>(rows[i + n] + j);
#if defined(__clang__)
      t[0] = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5);
      t[1] = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
      t[2] = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5);
      t[3] = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
      v[0] = __builtin_shufflevector(t[0], t[2], 0, 1, 4, 5);
      v[1] = __builtin_shufflevector(t[0], t[2], 2, 3, 6, 7);
      v[2] = __builtin_shufflevector(t[1], t[3], 0, 1, 4, 5);
      v[3] = __builtin_shufflevector(t[1], t[3], 2, 3, 6, 7);
#else
      t[0] = __builtin_shuffle(v[0], v[1], i32x4{0, 4, 1, 5});
      t[1] = __builtin_shuffle(v[0], v[1], i32x4{2, 6, 3, 7});
      t[2] = __builtin_shuffle(v[2], v[3], i32x4{0, 4, 1, 5});
      t[3] = __builtin_shuffle(v[2], v[3], i32x4{2, 6, 3, 7});
      v[0] = __builtin_shuffle(t[0], t[2], i32x4{0, 1, 4, 5});
      v[1] = __builtin_shuffle(t[0], t[2], i32x4{2, 3, 6, 7});
      v[2] = __builtin_shuffle(t[1], t[3], i32x4{0, 1, 4, 5});
      v[3] = __builtin_shuffle(t[1], t[3], i32x4{2, 3, 6, 7});
#endif
      for (int n = 0; n < 4; ++n) *reinterpret_cast<f32x4_unaligned*>(out + (j + n) * out_stride + i) = v[n];
    }
}
#endif

// The same from rows `in_stride` apart.
GEOLOC_FAST_INLINE void transpose16(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  const float* rows[16];
  for (int i = 0; i < 16; ++i) rows[i] = in + i * in_stride;
  transpose16(rows, out, out_stride);
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
