// Real Fourier transforms along azimuth, one a thread, in registers.
// SPDX-License-Identifier: Apache-2.0
//
//   forward:  X_f = sum_x in[x] e^(-2 pi i f x / N)                 inverse:  out[s] = sum_f X_f e^(2 pi i f s / N)
//
// (so the inverse of the forward is N times the input). A spectrum is N numbers: number 0 is X_0, number 1 is X_{N/2},
// numbers 2f and 2f + 1 are the real and imaginary part of X_f. N is a power of two, 4 to 64; every loop is unrolled,
// so that every index and every factor is known to the compiler.
#pragma once
#include "cuda/device.h"
// after device.h
#include "common/azimuth_transform.h"

namespace geoloc_fast::cuda {

// cos(2 pi i / 64), i = 0 .. 16
__device__ __forceinline__ constexpr float cosine64(int i) { return static_cast<float>(quarter_cosine(i)); }

// re, im hold N/2 + 1 values; im[0] and im[N/2] are not touched.
template <int N, int kStep>
__device__ __forceinline__ void forward_halves(const float* x, float* re, float* im) {
  if constexpr (N == 2) {
    re[0] = x[0] + x[kStep];
    re[1] = x[0] - x[kStep];
  } else {
    float even_re[N / 4 + 1], even_im[N / 4 + 1], odd_re[N / 4 + 1], odd_im[N / 4 + 1];
    forward_halves<N / 2, 2 * kStep>(x, even_re, even_im);
    forward_halves<N / 2, 2 * kStep>(x + kStep, odd_re, odd_im);
    re[0] = even_re[0] + odd_re[0];
    re[N / 2] = even_re[0] - odd_re[0];
#pragma unroll
    for (int k = 1; k < N / 4; ++k) {
      const float c = cosine64(k * (64 / N)), s = cosine64(16 - k * (64 / N));
      const float turned_re = odd_re[k] * c + odd_im[k] * s, turned_im = odd_im[k] * c - odd_re[k] * s;
      re[k] = even_re[k] + turned_re;
      im[k] = even_im[k] + turned_im;
      re[N / 2 - k] = even_re[k] - turned_re;
      im[N / 2 - k] = turned_im - even_im[k];
    }
    re[N / 4] = even_re[N / 4];
    im[N / 4] = -odd_re[N / 4];
  }
}

template <int N, int kStep>
__device__ __forceinline__ void inverse_halves(const float* re, const float* im, float* x) {
  if constexpr (N == 2) {
    x[0] = re[0] + re[1];
    x[kStep] = re[0] - re[1];
  } else {
    float even_re[N / 4 + 1], even_im[N / 4 + 1], odd_re[N / 4 + 1], odd_im[N / 4 + 1];
    even_re[0] = re[0] + re[N / 2];
    odd_re[0] = re[0] - re[N / 2];
#pragma unroll
    for (int k = 1; k < N / 4; ++k) {
      const float c = cosine64(k * (64 / N)), s = cosine64(16 - k * (64 / N));
      even_re[k] = re[k] + re[N / 2 - k];
      even_im[k] = im[k] - im[N / 2 - k];
      const float away_re = re[k] - re[N / 2 - k], away_im = im[k] + im[N / 2 - k];
      odd_re[k] = away_re * c - away_im * s;
      odd_im[k] = away_re * s + away_im * c;
    }
    even_re[N / 4] = re[N / 4] + re[N / 4];
    odd_re[N / 4] = -(im[N / 4] + im[N / 4]);
    inverse_halves<N / 2, 2 * kStep>(even_re, even_im, x);
    inverse_halves<N / 2, 2 * kStep>(odd_re, odd_im, x + kStep);
  }
}

// Both in place.
template <int N>
__device__ __forceinline__ void forward_transform(float (&values)[N]) {
  float re[N / 2 + 1], im[N / 2 + 1];
  forward_halves<N, 1>(values, re, im);
  values[0] = re[0];
  values[1] = re[N / 2];
#pragma unroll
  for (int f = 1; f < N / 2; ++f) values[2 * f] = re[f], values[2 * f + 1] = im[f];
}

template <int N>
__device__ __forceinline__ void inverse_transform(float (&values)[N]) {
  float re[N / 2 + 1], im[N / 2 + 1];
  re[0] = values[0];
  re[N / 2] = values[1];
#pragma unroll
  for (int f = 1; f < N / 2; ++f) re[f] = values[2 * f], im[f] = values[2 * f + 1];
  inverse_halves<N, 1>(re, im, values);
}

}  // namespace geoloc_fast::cuda
