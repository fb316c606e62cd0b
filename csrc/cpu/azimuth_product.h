// Products of two tables summed over one index, blocked in registers, lanes along the other table's rows:
//
//   out[m][n] (+)= sum_i left[m, i] right[i][n]        n = lanes, a multiple of 16
//
// as real numbers, as complex numbers, as complex with the left one conjugated, or number by number (slot 0 of a
// spectrum). The order of the sum is that of i for every element, whatever the blocking. For kernel sources only.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cpu/lanes.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

enum class Product { kReal, kComplex, kConjugate, kPairwise };

// Where the second number of a pair lies behind the first, and the strides of the indices (in floats).
struct ProductLayout {
  int64_t left_row, left_term, left_second;
  int64_t right_term, right_second;
  int64_t out_row, out_second;
};

#if defined(__AVX512F__)
typedef float native __attribute__((vector_size(64)));
constexpr int kRows = 6;
#elif defined(__AVX2__)
typedef float native __attribute__((vector_size(32)));
constexpr int kRows = 2;
#else
typedef float native __attribute__((vector_size(16)));
constexpr int kRows = 2;
#endif
typedef native native_unaligned __attribute__((aligned(4), may_alias));
constexpr int kNative = sizeof(native) / sizeof(float);

GEOLOC_FAST_INLINE native load_native(const float* from) { return *reinterpret_cast<const native_unaligned*>(from); }
GEOLOC_FAST_INLINE void store_native(float* to, native value) { *reinterpret_cast<native_unaligned*>(to) = value; }

template <Product kKind, int M, int V>
static void product_block(const float* left, const float* right, float* out, const ProductLayout& at, int64_t terms,
                          bool add) {
  constexpr int kNumbers = kKind == Product::kReal ? 1 : 2;
  native sum[kNumbers][M][V] = {};
  for (int64_t i = 0; i < terms; ++i) {
    native r[kNumbers][V];
#pragma GCC unroll 2
    for (int z = 0; z < kNumbers; ++z)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) r[z][v] = load_native(right + z * at.right_second + v * kNative);
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
      const float* at_row = left + m * at.left_row;
      const native a = native{} + at_row[0];
      if constexpr (kKind == Product::kReal) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) sum[0][m][v] += a * r[0][v];
      } else {
        const native b = native{} + at_row[at.left_second];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          if constexpr (kKind == Product::kPairwise) {
            sum[0][m][v] += a * r[0][v];
            sum[1][m][v] += b * r[1][v];
          } else if constexpr (kKind == Product::kConjugate) {
            sum[0][m][v] += a * r[0][v];
            sum[1][m][v] += a * r[1][v];
            sum[0][m][v] += b * r[1][v];
            sum[1][m][v] -= b * r[0][v];
          } else {
            sum[0][m][v] += a * r[0][v];
            sum[1][m][v] += a * r[1][v];
            sum[0][m][v] -= b * r[1][v];
            sum[1][m][v] += b * r[0][v];
          }
        }
      }
    }
    left += at.left_term;
    right += at.right_term;
  }
#pragma GCC unroll 2
  for (int z = 0; z < kNumbers; ++z)
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        float* to = out + m * at.out_row + z * at.out_second + v * kNative;
        store_native(to, add ? load_native(to) + sum[z][m][v] : sum[z][m][v]);
      }
}

template <Product kKind, int M>
GEOLOC_FAST_INLINE void product_rows(const float* left, const float* right, float* out, const ProductLayout& at,
                                     int64_t terms, int64_t lanes, bool add) {
  int64_t n = 0;
  for (; n + 2 * kNative <= lanes; n += 2 * kNative)
    product_block<kKind, M, 2>(left, right + n, out + n, at, terms, add);
  for (; n < lanes; n += kNative) product_block<kKind, M, 1>(left, right + n, out + n, at, terms, add);
}

template <Product kKind>
static void product(const float* left, const float* right, float* out, const ProductLayout& at, int64_t rows,
                    int64_t terms, int64_t lanes, bool add) {
  int64_t m = 0;
  for (; m + kRows <= rows; m += kRows)
    product_rows<kKind, kRows>(left + m * at.left_row, right, out + m * at.out_row, at, terms, lanes, add);
  if constexpr (kRows > 2)
    for (; m + 2 <= rows; m += 2)
      product_rows<kKind, 2>(left + m * at.left_row, right, out + m * at.out_row, at, terms, lanes, add);
  for (; m < rows; ++m)
    product_rows<kKind, 1>(left + m * at.left_row, right, out + m * at.out_row, at, terms, lanes, add);
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
