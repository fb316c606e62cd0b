// Real Fourier transforms along azimuth, sixteen at once in the lanes of a vector. For kernel sources only.
//
//   forward:  X_f = sum_x in[x] e^(-2 pi i f x / W)                 inverse:  out[s] = sum_f X_f e^(2 pi i f s / W)
//
// (so the inverse of the forward is W times the input). A spectrum is F = ceil(W/2) slots of two numbers: slot 0 is
// (X_0, X_{W/2}) with 0 in place of the second for odd W, slot f is (Re X_f, Im X_f). Both numbers of slot 0 are real:
// spectra are multiplied number by number there and as complex numbers elsewhere.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/azimuth_transform.h"
#include "cpu/azimuth_plan.h"
#include "cpu/lanes.h"

namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {

// Where the vectors of a transform lie: column x at values + x * value_stride, slot f at
// slots + f * slot_stride, its second number `second` further.
struct TransformLayout {
  int64_t value_stride, slot_stride, second;
};

template <int N>
static void forward_fast(const float* values, float* out, const TransformLayout& at) {
  f32x16 x[N], re[N / 2 + 1], im[N / 2 + 1];
#pragma GCC unroll 64
  for (int i = 0; i < N; ++i) x[i] = load16(values + i * at.value_stride);
  forward_fixed<N, float>(x, 1, re, im);
  store16(out, re[0]);
  store16(out + at.second, N > 1 ? re[N / 2] : f32x16{});
#pragma GCC unroll 32
  for (int f = 1; f < N / 2; ++f) {
    store16(out + f * at.slot_stride, re[f]);
    store16(out + f * at.slot_stride + at.second, im[f]);
  }
}

// With 0 in the columns that are not there.
template <int N>
static void forward_padded(const float* values, int64_t present, float* out, const TransformLayout& at) {
  if (present == N) return forward_fast<N>(values, out, at);
  float padded[N * 16] __attribute__((aligned(64)));
  for (int64_t i = 0; i < present; ++i) store16(padded + i * 16, load16(values + i * at.value_stride));
  for (int64_t i = present; i < N; ++i) store16(padded + i * 16, f32x16{});
  forward_fast<N>(padded, out, {16, at.slot_stride, at.second});
}

template <int N>
static void inverse_fast(const float* in, float* values, const TransformLayout& at) {
  f32x16 x[N], re[N / 2 + 1], im[N / 2 + 1];
  re[0] = load16(in);
  if (N > 1) re[N / 2] = load16(in + at.second);
#pragma GCC unroll 32
  for (int f = 1; f < N / 2; ++f) {
    re[f] = load16(in + f * at.slot_stride);
    im[f] = load16(in + f * at.slot_stride + at.second);
  }
  inverse_fixed<N, float, 2>(re, im, x, 1);
#pragma GCC unroll 64
  for (int i = 0; i < N; ++i) store16(values + i * at.value_stride, x[i]);
}

// Any other W: the sums themselves, folded (x and W - x share their cosine and, but for the sign, their sine).
// table: cos(2 pi k / W), k = 0 .. W-1, then the sines.
static void forward_any(const float* values, int64_t present, float* out, const TransformLayout& at, int64_t columns,
                        const float* table) {
  const float* sines = table + columns;
  auto column = [&](int64_t x) { return x < present ? load16(values + x * at.value_stride) : f32x16{}; };
  for (int64_t f = 0; f <= columns / 2; ++f) {
    f32x16 re = column(0), im{};
    for (int64_t x = 1, k = f; 2 * x < columns; ++x) {
      const f32x16 a = column(x), b = column(columns - x);
      re += (a + b) * table[k];
      im += (b - a) * sines[k];
      k += f;
      if (k >= columns) k -= columns;
    }
    if (columns % 2 == 0) re += f % 2 == 0 ? column(columns / 2) : -column(columns / 2);
    if (f == 0) {
      store16(out, re);
      if (columns % 2 != 0) store16(out + at.second, f32x16{});
    } else if (2 * f == columns) {
      store16(out + at.second, re);
    } else {
      store16(out + f * at.slot_stride, re);
      store16(out + f * at.slot_stride + at.second, im);
    }
  }
}

static void inverse_any(const float* in, float* values, const TransformLayout& at, int64_t columns,
                        const float* table) {
  const float* sines = table + columns;
  const int64_t count = slots(columns);
  const f32x16 first = load16(in), middle = load16(in + at.second);  // the middle is 0 for odd W
  for (int64_t s = 0; 2 * s <= columns; ++s) {
    f32x16 even{}, odd{};
    for (int64_t f = 1, k = s; f < count; ++f) {
      even += load16(in + f * at.slot_stride) * table[k];
      odd += load16(in + f * at.slot_stride + at.second) * sines[k];
      k += s;
      if (k >= columns) k -= columns;
    }
    const f32x16 base = first + (s % 2 == 0 ? middle : -middle);
    store16(values + s * at.value_stride, base + 2.0f * (even - odd));
    if (s != 0 && 2 * s != columns) store16(values + (columns - s) * at.value_stride, base + 2.0f * (even + odd));
  }
}

static inline void fill_transform_table(int64_t columns, float* table) {
  for (int64_t k = 0; k < columns; ++k) {
    const double angle = 6.283185307179586 * static_cast<double>(k) / static_cast<double>(columns);
    table[k] = static_cast<float>(__builtin_cos(angle));
    table[columns + k] = static_cast<float>(__builtin_sin(angle));
  }
}

// Columns from `present` on count as 0 and are not read.
static inline void forward_transform(const float* values, int64_t present, float* out, const TransformLayout& at,
                                     int64_t columns, const float* table) {
  switch (columns) {
    case 1: return forward_padded<1>(values, present, out, at);
    case 2: return forward_padded<2>(values, present, out, at);
    case 4: return forward_padded<4>(values, present, out, at);
    case 8: return forward_padded<8>(values, present, out, at);
    case 16: return forward_padded<16>(values, present, out, at);
    case 32: return forward_padded<32>(values, present, out, at);
    case 64: return forward_padded<64>(values, present, out, at);
    default: return forward_any(values, present, out, at, columns, table);
  }
}

static inline void inverse_transform(const float* in, float* values, const TransformLayout& at, int64_t columns,
                                     const float* table) {
  switch (columns) {
    case 1: return inverse_fast<1>(in, values, at);
    case 2: return inverse_fast<2>(in, values, at);
    case 4: return inverse_fast<4>(in, values, at);
    case 8: return inverse_fast<8>(in, values, at);
    case 16: return inverse_fast<16>(in, values, at);
    case 32: return inverse_fast<32>(in, values, at);
    case 64: return inverse_fast<64>(in, values, at);
    default: return inverse_any(in, values, at, columns, table);
  }
}

}  // namespace geoloc_fast::cpu::GEOLOC_FAST_ISA
