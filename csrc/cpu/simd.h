// Sixteen lanes for every instruction set: one 512-bit register, two of 256 or four of 128 bits. Kernels are
// written once with these types; what only one instruction set can do sits behind its macro
// (__AVX512F__, __AVX512BF16__, __AVX2__) in the kernel that needs it.
//
// A file that includes this is compiled once per instruction set, so everything it defines lives in
// namespace geoloc_fast::cpu::GEOLOC_FAST_ISA or is static: an inline function shared between the builds
// would be linked once, perhaps with instructions the machine does not have. For the same reason such a
// file includes no standard header that brings inline code along.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

#ifndef GEOLOC_FAST_ISA
#error "simd.h belongs to kernel sources, which are compiled with GEOLOC_FAST_ISA defined"
#endif

#define GEOLOC_FAST_INLINE static inline __attribute__((always_inline))

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef float f32x16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u32x16_unaligned __attribute__((vector_size(64), aligned(4), may_alias));

GEOLOC_FAST_INLINE f32x16 load16(const float* from) { return *reinterpret_cast<const f32x16_unaligned*>(from); }
GEOLOC_FAST_INLINE void store16(float* to, f32x16 value) { *reinterpret_cast<f32x16_unaligned*>(to) = value; }
GEOLOC_FAST_INLINE u32x16 load16(const uint32_t* from) { return *reinterpret_cast<const u32x16_unaligned*>(from); }
// value - 0 is value for every float, so that only a broadcast is left of it (0 + value would turn -0 into 0).
GEOLOC_FAST_INLINE f32x16 splat(float value) { return value - f32x16{}; }

// The two bfloat16 values of every word, as float32.
GEOLOC_FAST_INLINE f32x16 low_bf16(u32x16 words) { return reinterpret_cast<f32x16>(words << 16); }
GEOLOC_FAST_INLINE f32x16 high_bf16(u32x16 words) { return reinterpret_cast<f32x16>(words & 0xffff0000u); }

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
