// 16-bit floats on the CPU, without hardware support: storage types and exact conversions. Internal linkage, as
// kernel sources are compiled once per instruction set (cpu/isa.h) and may not share a function that is not inlined.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <cstring>

namespace geoloc_fast {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

namespace half_detail {
static inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
}  // namespace half_detail

static inline float to_float(uint8_t value) { return static_cast<float>(value); }
static inline float to_float(float value) { return value; }
static inline float to_float(BFloat16 value) { return half_detail::as_float(static_cast<uint32_t>(value.bits) << 16); }
static inline float to_float(Float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return half_detail::as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Scaling by 2^112 moves the exponent bias from 15 to 127 and is exact for subnormals too.
  const float scaled = half_detail::as_float(magnitude << 13) * half_detail::as_float(0x77800000u);
  return half_detail::as_float(sign | half_detail::as_bits(scaled));
}

template <typename T>
static inline T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline uint8_t from_float<uint8_t>(float value) {
  if (!(value > 0.0f)) return 0;  // negatives and NaN
  if (value >= 255.0f) return 255;
  const float rounded = (value + 8388608.0f) - 8388608.0f;  // 2^23: to nearest, ties to even
  return static_cast<uint8_t>(rounded);
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = half_detail::as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
inline Float16 from_float<Float16>(float value) {
  const uint32_t bits = half_detail::as_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {  // subnormal: let the adder round at 2^-24
    const float sum = half_detail::as_float(magnitude) + half_detail::as_float(0x3f000000u);
    return {static_cast<uint16_t>(sign | (half_detail::as_bits(sum) - 0x3f000000u))};
  }
  const uint32_t rebased = magnitude - 0x38000000u;
  return {static_cast<uint16_t>(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13))};
}

}  // namespace geoloc_fast
