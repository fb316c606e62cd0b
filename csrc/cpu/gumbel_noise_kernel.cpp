// SPDX-License-Identifier: Apache-2.0
#include "cpu/lanes.h"
#include "cpu/threads.h"
#include "geoloc_fast/gumbel_noise.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
namespace {

constexpr int64_t kBlock = 64;  // values of sixteen counters

// The high halves of the 64-bit products.
GEOLOC_FAST_INLINE u32x16 high_product(u32x16 a, uint32_t b) {
#if defined(__AVX512F__)
  typedef uint64_t u64x8 __attribute__((vector_size(64)));
  const u64x8 x = reinterpret_cast<u64x8>(a);
  const __m512i y = _mm512_set1_epi64(b);
  const u64x8 even = reinterpret_cast<u64x8>(_mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(x), y)) >> 32;
  const u64x8 odd = reinterpret_cast<u64x8>(_mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(x >> 32), y));
  return reinterpret_cast<u32x16>(even | (odd & 0xffffffff00000000u));
#else
  typedef uint64_t u64x4 __attribute__((vector_size(32)));
  typedef uint32_t u32x4 __attribute__((vector_size(16)));
  u32x16 result;
  for (int part = 0; part < 4; ++part) {
    u32x4 quarter;
    __builtin_memcpy(&quarter, reinterpret_cast<const char*>(&a) + 16 * part, 16);
    const u64x4 product = __builtin_convertvector(quarter, u64x4) * uint64_t{b};
    quarter = __builtin_convertvector(product >> 32, u32x4);
    __builtin_memcpy(reinterpret_cast<char*>(&result) + 16 * part, &quarter, 16);
  }
  return result;
#endif
}

GEOLOC_FAST_INLINE f32x16 gumbel_of(u32x16 word) {
  const f32x16 u = (__builtin_convertvector(reinterpret_cast<i32x16>(word >> 9), f32x16) + 0.5f) * 1.1920929e-7f;
  return -log_of_positive(-log_of_positive(u));
}

void noise_block(uint64_t seed, int64_t block, float* out) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const uint64_t counter = static_cast<uint64_t>(block) * 16;
  u32x16 x0 = reinterpret_cast<u32x16>(lane) + static_cast<uint32_t>(counter);  // a multiple of 16: no carry
  u32x16 x1 = u32x16{} + static_cast<uint32_t>(counter >> 32), x2{}, x3{};
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const u32x16 high0 = high_product(x0, 0xd2511f53u), high1 = high_product(x2, 0xcd9e8d57u);
    const u32x16 low0 = x0 * 0xd2511f53u, low1 = x2 * 0xcd9e8d57u;
    x0 = high1 ^ x1 ^ key0;
    x1 = low1;
    x2 = high0 ^ x3 ^ key1;
    x3 = low0;
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  store16(out, gumbel_of(x0));
  store16(out + 16, gumbel_of(x1));
  store16(out + 32, gumbel_of(x2));
  store16(out + 48, gumbel_of(x3));
}

}  // namespace

void gumbel_noise(uint64_t seed, float* out, int64_t count, int threads) {
  auto blocks = [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock;
      if (first + kBlock <= count) {
        noise_block(seed, block, out + first);
        continue;
      }
      float last[kBlock];
      noise_block(seed, block, last);
      for (int64_t n = first; n < count; ++n) out[n] = last[n - first];
    }
  };
  parallel_for((count + kBlock - 1) / kBlock, 64, threads, blocks);
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
