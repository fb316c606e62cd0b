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

// Both in place.
template <int N>
__device__ __forceinline__ void forward_transform(float (&values)[N]) {
  float re[N / 2 + 1], im[N / 2 + 1];
  forward_fixed<N, float>(values, 1, re, im);
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
  inverse_fixed<N, float, 2>(re, im, values, 1);
}

}  // namespace geoloc_fast::cuda
