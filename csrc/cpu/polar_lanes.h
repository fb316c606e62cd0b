// Vectors of kLanes 128-bit lanes, four pixels a lane, for polar_resample: one body for SSE2, AVX2 and AVX-512.
// Where a lane holds one pixel (its channels in the lane's four words), vector k of four holds pixels
// 4 lane + k, so that transpose4 works inside lanes and leaves pixels in order.
//
// GEOLOC_FAST_POLAR_LANES is defined where this exists; elsewhere the generic path runs.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/half.h"
#include "cpu/simd.h"

#if defined(__SSE2__)
#define GEOLOC_FAST_POLAR_LANES 1
#include <immintrin.h>

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

#if defined(__AVX512BW__)
constexpr int kLanes = 4;
#elif defined(__AVX2__)
constexpr int kLanes = 2;
#else
constexpr int kLanes = 1;
#endif
constexpr int kPixels = 4 * kLanes;

typedef float F32 __attribute__((vector_size(16 * kLanes), may_alias));
typedef int32_t I32 __attribute__((vector_size(16 * kLanes), may_alias));
typedef uint32_t U32 __attribute__((vector_size(16 * kLanes), may_alias));
typedef double F64 __attribute__((vector_size(16 * kLanes), may_alias));  // kPixels / 2 of them
typedef float F32Unaligned __attribute__((vector_size(16 * kLanes), may_alias, aligned(4)));

GEOLOC_FAST_INLINE I32 minimum(I32 a, I32 b) { return a < b ? a : b; }
GEOLOC_FAST_INLINE I32 maximum(I32 a, I32 b) { return a > b ? a : b; }
GEOLOC_FAST_INLINE F32 minimum(F32 a, F32 b) { return a < b ? a : b; }
GEOLOC_FAST_INLINE F32 maximum(F32 a, F32 b) { return a > b ? a : b; }
GEOLOC_FAST_INLINE F64 minimum(F64 a, F64 b) { return a < b ? a : b; }
GEOLOC_FAST_INLINE F64 maximum(F64 a, F64 b) { return a > b ? a : b; }
GEOLOC_FAST_INLINE F32 splat_f32(float value) { return F32{} + value; }
GEOLOC_FAST_INLINE F64 splat_f64(double value) { return F64{} + value; }
GEOLOC_FAST_INLINE I32 splat_i32(int32_t value) { return I32{} + value; }

// What has one instruction in each instruction set.
#if defined(__AVX512BW__)
GEOLOC_FAST_INLINE I32 round_to_i32(F64 low, F64 high) {
  return (I32)_mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtpd_epi32((__m512d)low)),
                                 _mm512_cvtpd_epi32((__m512d)high), 1);
}
GEOLOC_FAST_INLINE F32 to_f32(F64 low, F64 high) {
  return (F32)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)low)), _mm512_cvtpd_ps((__m512d)high),
                                 1);
}
GEOLOC_FAST_INLINE F64 low_f64(I32 a) { return (F64)_mm512_cvtepi32_pd(_mm512_castsi512_si256((__m512i)a)); }
GEOLOC_FAST_INLINE F64 high_f64(I32 a) { return (F64)_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64((__m512i)a, 1)); }
GEOLOC_FAST_INLINE F32 to_f32(I32 a) { return (F32)_mm512_cvtepi32_ps((__m512i)a); }
// Sums of products of neighbouring 16-bit values.
GEOLOC_FAST_INLINE I32 multiply_add(I32 a, I32 b) { return (I32)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
template <int kOrder>
GEOLOC_FAST_INLINE I32 words(I32 a) {
  return (I32)_mm512_shuffle_epi32((__m512i)a, (_MM_PERM_ENUM)kOrder);
}
GEOLOC_FAST_INLINE I32 unpack_low32(I32 a, I32 b) { return (I32)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b); }
GEOLOC_FAST_INLINE I32 unpack_high32(I32 a, I32 b) { return (I32)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b); }
GEOLOC_FAST_INLINE I32 unpack_low64(I32 a, I32 b) { return (I32)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b); }
GEOLOC_FAST_INLINE I32 unpack_high64(I32 a, I32 b) { return (I32)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b); }
template <int kOrder>
GEOLOC_FAST_INLINE F32 shuffle(F32 a, F32 b) {
  return (F32)_mm512_shuffle_ps((__m512)a, (__m512)b, kOrder);
}
// lane(l) for every lane l, side by side.
template <typename Lane>
GEOLOC_FAST_INLINE I32 lanes(const Lane& lane) {
  const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(lane(0)), lane(1), 1);
  const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(lane(2)), lane(3), 1);
  return (I32)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
// Bytes 0..5 of each lane's half as 16-bit pairs (left, right) of three channels, or of four.
GEOLOC_FAST_INLINE I32 pick_bytes(I32 a, __m128i order) {
  return (I32)_mm512_shuffle_epi8((__m512i)a, _mm512_broadcast_i32x4(order));
}
// Four 16-bit values from each of the pointers as 32-bit words, a lane each.
template <typename Pointer>
GEOLOC_FAST_INLINE U32 load_words16(const Pointer& pointer) {
  const __m128i low =
      _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)pointer(0)), _mm_loadl_epi64((const __m128i*)pointer(1)));
  const __m128i high =
      _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)pointer(2)), _mm_loadl_epi64((const __m128i*)pointer(3)));
  return (U32)_mm512_cvtepu16_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
GEOLOC_FAST_INLINE void store_words16(uint16_t* to, U32 a) {
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)a));
}
GEOLOC_FAST_INLINE void store_words8(uint8_t* to, U32 a) {
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)a));
}
#elif defined(__AVX2__)
GEOLOC_FAST_INLINE I32 round_to_i32(F64 low, F64 high) {
  return (I32)_mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtpd_epi32((__m256d)low)),
                                      _mm256_cvtpd_epi32((__m256d)high), 1);
}
GEOLOC_FAST_INLINE F32 to_f32(F64 low, F64 high) {
  return (F32)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps((__m256d)low)),
                                   _mm256_cvtpd_ps((__m256d)high), 1);
}
GEOLOC_FAST_INLINE F64 low_f64(I32 a) { return (F64)_mm256_cvtepi32_pd(_mm256_castsi256_si128((__m256i)a)); }
GEOLOC_FAST_INLINE F64 high_f64(I32 a) { return (F64)_mm256_cvtepi32_pd(_mm256_extracti128_si256((__m256i)a, 1)); }
GEOLOC_FAST_INLINE F32 to_f32(I32 a) { return (F32)_mm256_cvtepi32_ps((__m256i)a); }
GEOLOC_FAST_INLINE I32 multiply_add(I32 a, I32 b) { return (I32)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
template <int kOrder>
GEOLOC_FAST_INLINE I32 words(I32 a) {
  return (I32)_mm256_shuffle_epi32((__m256i)a, kOrder);
}
GEOLOC_FAST_INLINE I32 unpack_low32(I32 a, I32 b) { return (I32)_mm256_unpacklo_epi32((__m256i)a, (__m256i)b); }
GEOLOC_FAST_INLINE I32 unpack_high32(I32 a, I32 b) { return (I32)_mm256_unpackhi_epi32((__m256i)a, (__m256i)b); }
GEOLOC_FAST_INLINE I32 unpack_low64(I32 a, I32 b) { return (I32)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b); }
GEOLOC_FAST_INLINE I32 unpack_high64(I32 a, I32 b) { return (I32)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b); }
template <int kOrder>
GEOLOC_FAST_INLINE F32 shuffle(F32 a, F32 b) {
  return (F32)_mm256_shuffle_ps((__m256)a, (__m256)b, kOrder);
}
template <typename Lane>
GEOLOC_FAST_INLINE I32 lanes(const Lane& lane) {
  return (I32)_mm256_inserti128_si256(_mm256_castsi128_si256(lane(0)), lane(1), 1);
}
GEOLOC_FAST_INLINE I32 pick_bytes(I32 a, __m128i order) {
  return (I32)_mm256_shuffle_epi8((__m256i)a, _mm256_broadcastsi128_si256(order));
}
template <typename Pointer>
GEOLOC_FAST_INLINE U32 load_words16(const Pointer& pointer) {
  return (U32)_mm256_cvtepu16_epi32(
      _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)pointer(0)), _mm_loadl_epi64((const __m128i*)pointer(1))));
}
GEOLOC_FAST_INLINE __m128i narrow16(U32 a) {
  const __m256i packed = _mm256_packus_epi32((__m256i)a, (__m256i)a);  // each lane's four words, twice
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
GEOLOC_FAST_INLINE void store_words16(uint16_t* to, U32 a) { _mm_storeu_si128((__m128i*)to, narrow16(a)); }
GEOLOC_FAST_INLINE void store_words8(uint8_t* to, U32 a) {
  const __m128i packed = narrow16(a);
  _mm_storel_epi64((__m128i*)to, _mm_packus_epi16(packed, packed));
}
#else
GEOLOC_FAST_INLINE I32 round_to_i32(F64 low, F64 high) {
  return (I32)_mm_unpacklo_epi64(_mm_cvtpd_epi32((__m128d)low), _mm_cvtpd_epi32((__m128d)high));
}
GEOLOC_FAST_INLINE F32 to_f32(F64 low, F64 high) {
  return (F32)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)low), _mm_cvtpd_ps((__m128d)high));
}
GEOLOC_FAST_INLINE F64 low_f64(I32 a) { return (F64)_mm_cvtepi32_pd((__m128i)a); }
GEOLOC_FAST_INLINE F64 high_f64(I32 a) { return (F64)_mm_cvtepi32_pd(_mm_shuffle_epi32((__m128i)a, 0xee)); }
GEOLOC_FAST_INLINE F32 to_f32(I32 a) { return (F32)_mm_cvtepi32_ps((__m128i)a); }
GEOLOC_FAST_INLINE I32 multiply_add(I32 a, I32 b) { return (I32)_mm_madd_epi16((__m128i)a, (__m128i)b); }
template <int kOrder>
GEOLOC_FAST_INLINE I32 words(I32 a) {
  return (I32)_mm_shuffle_epi32((__m128i)a, kOrder);
}
GEOLOC_FAST_INLINE I32 unpack_low32(I32 a, I32 b) { return (I32)_mm_unpacklo_epi32((__m128i)a, (__m128i)b); }
GEOLOC_FAST_INLINE I32 unpack_high32(I32 a, I32 b) { return (I32)_mm_unpackhi_epi32((__m128i)a, (__m128i)b); }
GEOLOC_FAST_INLINE I32 unpack_low64(I32 a, I32 b) { return (I32)_mm_unpacklo_epi64((__m128i)a, (__m128i)b); }
GEOLOC_FAST_INLINE I32 unpack_high64(I32 a, I32 b) { return (I32)_mm_unpackhi_epi64((__m128i)a, (__m128i)b); }
template <int kOrder>
GEOLOC_FAST_INLINE F32 shuffle(F32 a, F32 b) {
  return (F32)_mm_shuffle_ps((__m128)a, (__m128)b, kOrder);
}
template <typename Lane>
GEOLOC_FAST_INLINE I32 lanes(const Lane& lane) {
  return (I32)lane(0);
}
template <typename Pointer>
GEOLOC_FAST_INLINE U32 load_words16(const Pointer& pointer) {
  return (U32)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i*)pointer(0)), _mm_setzero_si128());
}
GEOLOC_FAST_INLINE void store_words16(uint16_t* to, U32 a) {
  // Signed saturation is all there is: sign-extending bit 15 first makes it keep every value.
  const __m128i extended = _mm_srai_epi32(_mm_slli_epi32((__m128i)a, 16), 16);
  _mm_storel_epi64((__m128i*)to, _mm_packs_epi32(extended, extended));
}
GEOLOC_FAST_INLINE void store_words8(uint8_t* to, U32 a) {
  const __m128i packed = _mm_packs_epi32((__m128i)a, (__m128i)a);
  const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(packed, packed));
  __builtin_memcpy(to, &bytes, 4);
}
#endif

GEOLOC_FAST_INLINE F32 as_f32(U32 a) { return (F32)a; }
GEOLOC_FAST_INLINE F32 widen(U32 bits, BFloat16) { return (F32)(bits << 16); }
// As to_float(Float16) in common/half.h.
GEOLOC_FAST_INLINE F32 widen(U32 bits, Float16) {
  const U32 sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  const U32 scaled = (U32)((F32)(magnitude << 13) * __builtin_bit_cast(float, 0x77800000u));
  const U32 special = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  return (F32)(sign | (magnitude >= 0x7c00u ? special : scaled));
}

GEOLOC_FAST_INLINE void store(float* to, F32 value) { *(F32Unaligned*)to = value; }
GEOLOC_FAST_INLINE void store(uint8_t* to, F32 value) {
  value = value > 0.0f ? value : F32{};                    // NaN too
  value = minimum(value, splat_f32(255.0f)) + 8388608.0f;  // 2^23: to nearest, ties to even
  store_words8(to, (U32)value & 0xffu);
}
GEOLOC_FAST_INLINE void store(BFloat16* to, F32 value) {
  const U32 bits = (U32)value;
  const U32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U32 nan = (bits >> 16) | 0x40u;
  store_words16(&to->bits, (U32)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded));
}
// As from_float<Float16> in common/half.h.
GEOLOC_FAST_INLINE void store(Float16* to, F32 value) {
  const U32 bits = (U32)value, sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const U32 rebased = magnitude - 0x38000000u;
  U32 half = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  const U32 subnormal = (U32)((F32)magnitude + 0.5f) - 0x3f000000u;
  half = magnitude < 0x38800000u ? subnormal : half;
  half = magnitude >= 0x477ff000u ? U32{} + 0x7c00u : half;
  half = magnitude > 0x7f800000u ? U32{} + 0x7e00u : half;
  store_words16(&to->bits, sign | half);
}

// Four vectors of one pixel a lane -> vectors of one channel each, pixels in order.
template <int kChannels>
GEOLOC_FAST_INLINE void transpose4(const I32 (&pixel)[4], I32 (&channel)[4]) {
  const I32 low01 = unpack_low32(pixel[0], pixel[1]), low23 = unpack_low32(pixel[2], pixel[3]);
  const I32 high01 = unpack_high32(pixel[0], pixel[1]), high23 = unpack_high32(pixel[2], pixel[3]);
  channel[0] = unpack_low64(low01, low23);
  channel[1] = unpack_high64(low01, low23);
  channel[2] = unpack_low64(high01, high23);
  if (kChannels == 4) channel[3] = unpack_high64(high01, high23);
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
#endif
