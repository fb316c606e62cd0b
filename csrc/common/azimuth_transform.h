// The real Fourier transform along azimuth and its inverse, on vectors whose lanes are independent signals (on the
// GPU: on numbers). For kernel sources: those of the CPU, where like in simd.h nothing is shared between builds, and
// those of the GPU, which include cuda/device.h before.
// SPDX-License-Identifier: Apache-2.0
//
//   inverse:  out[s] = re[0] + sum_f (re[f] cos(2 pi f s / W) - im[f] sin(2 pi f s / W)) + re[W/2] (-1)^s
//
// with 0 < f < W/2 and the last term for even W only; forward is its transpose: re[f] = sum_s in[s] cos, im[f] =
// -sum_s in[s] sin. Neither scales. An even W splits into even and odd s, each a transform of half the length of
//
//   even: B_f = A_f + conj(A_(W/2-f)),   odd: B_f = (A_f - conj(A_(W/2-f))) e^(2 pi i f / W),   0 <= f <= W/4
//
// and the odd part that is left takes s and W-s together, from a table. `circle` is cos, then sin, of 2 pi i / n for
// i < n, where n = `points` is a multiple of W.
#pragma once
#include <cstdint>

#if defined(GEOLOC_FAST_ISA)
#define GEOLOC_FAST_INLINE static inline __attribute__((always_inline))  // as in cpu/simd.h
#define GEOLOC_FAST_TRANSFORM
#define GEOLOC_FAST_UNROLL _Pragma("GCC unroll 16")
namespace geoloc_fast::cpu::GEOLOC_FAST_ISA {
constexpr int kHalvings = -1;
#else
#define GEOLOC_FAST_INLINE __device__ __forceinline__
#define GEOLOC_FAST_TRANSFORM __device__ GEOLOC_FAST_NOINLINE
#if defined(__CUDACC__)
#define GEOLOC_FAST_UNROLL _Pragma("unroll")
#else
#define GEOLOC_FAST_UNROLL
#endif
namespace geoloc_fast::cuda {
constexpr int kHalvings = 12;  // of kMaxStripColumns: the depth of a stack must be known
#endif
// How often a length can still be halved; -1: as often as it takes.
constexpr int fewer(int halvings) { return halvings <= 0 ? halvings : halvings - 1; }

constexpr double quarter_cosine(int i) {  // of 2 pi i / 64, i <= 16
  const double table[17] = {1.0,
                            0.99518472667219693,
                            0.98078528040323043,
                            0.95694033573220882,
                            0.92387953251128674,
                            0.88192126434835505,
                            0.83146961230254524,
                            0.77301045336273699,
                            0.70710678118654757,
                            0.63439328416364549,
                            0.55557023301960218,
                            0.47139673682599764,
                            0.38268343236508977,
                            0.29028467725446233,
                            0.19509032201612825,
                            0.098017140329560604,
                            0.0};
  return table[i];
}
constexpr double cosine_of_64(int i) { return i <= 16 ? quarter_cosine(i) : -quarter_cosine(32 - i); }
constexpr double sine_of_64(int i) { return i <= 16 ? quarter_cosine(16 - i) : quarter_cosine(i - 16); }

// W a power of two up to 64, written out; im[0] and im[W/2] are not touched. With kTimes = 2 a frequency f < W/2 counts
// for its mirror image W - f too, so that the inverse of the forward is W times the input. With `circle` of kPoints
// it has the very bits of inverse_any.
template <int kColumns, typename Scalar, int kTimes = 1, int kPoints = 0, typename Vector>
GEOLOC_FAST_INLINE void inverse_fixed(const Vector* re, const Vector* im, Vector* out, int stride,
                                      [[maybe_unused]] const Scalar* circle = nullptr) {
  if constexpr (kColumns == 1) {
    out[0] = re[0];
  } else if constexpr (kColumns == 2) {
    out[0] = re[0] + re[1];
    out[stride] = re[0] - re[1];
  } else {
    constexpr int kHalf = kColumns / 2, kQuarter = kColumns / 4, kStep = 64 / kColumns;
    Vector even_re[kQuarter + 1], even_im[kQuarter + 1], odd_re[kQuarter + 1], odd_im[kQuarter + 1];
    even_re[0] = re[0] + re[kHalf];
    odd_re[0] = re[0] - re[kHalf];
    GEOLOC_FAST_UNROLL
    for (int f = 1; f < kQuarter; ++f) {
      const Scalar c = kPoints ? circle[f * (kPoints / kColumns)] : static_cast<Scalar>(cosine_of_64(f * kStep));
      const Scalar s =
          kPoints ? circle[f * (kPoints / kColumns) + kPoints] : static_cast<Scalar>(sine_of_64(f * kStep));
      even_re[f] = re[f] + re[kHalf - f];
      even_im[f] = im[f] - im[kHalf - f];
      const Vector difference_re = re[f] - re[kHalf - f], difference_im = im[f] + im[kHalf - f];
      odd_re[f] = difference_re * c - difference_im * s;
      odd_im[f] = difference_re * s + difference_im * c;
    }
    even_re[kQuarter] = re[kQuarter] * static_cast<Scalar>(kTimes);
    odd_re[kQuarter] = im[kQuarter] * static_cast<Scalar>(-kTimes);
    inverse_fixed<kHalf, Scalar, kTimes, kPoints>(even_re, even_im, out, 2 * stride, circle);
    inverse_fixed<kHalf, Scalar, kTimes, kPoints>(odd_re, odd_im, out + stride, 2 * stride, circle);
  }
}

template <int kColumns, typename Scalar, typename Vector>
GEOLOC_FAST_INLINE void forward_fixed(const Vector* in, int stride, Vector* re, Vector* im) {
  if constexpr (kColumns == 1) {
    re[0] = in[0];
  } else if constexpr (kColumns == 2) {
    re[0] = in[0] + in[stride];
    re[1] = in[0] - in[stride];
  } else {
    constexpr int kHalf = kColumns / 2, kQuarter = kColumns / 4, kStep = 64 / kColumns;
    Vector even_re[kQuarter + 1], even_im[kQuarter + 1], odd_re[kQuarter + 1], odd_im[kQuarter + 1];
    forward_fixed<kHalf, Scalar>(in, 2 * stride, even_re, even_im);
    forward_fixed<kHalf, Scalar>(in + stride, 2 * stride, odd_re, odd_im);
    re[0] = even_re[0] + odd_re[0];
    re[kHalf] = even_re[0] - odd_re[0];
    GEOLOC_FAST_UNROLL
    for (int f = 1; f < kQuarter; ++f) {
      const Scalar c = static_cast<Scalar>(cosine_of_64(f * kStep)), s = static_cast<Scalar>(sine_of_64(f * kStep));
      const Vector turned_re = odd_re[f] * c + odd_im[f] * s, turned_im = odd_im[f] * c - odd_re[f] * s;
      re[f] = even_re[f] + turned_re;
      im[f] = even_im[f] + turned_im;
      re[kHalf - f] = even_re[f] - turned_re;
      im[kHalf - f] = turned_im - even_im[f];
    }
    re[kQuarter] = even_re[kQuarter];
    im[kQuarter] = -odd_re[kQuarter];
  }
}

// What the odd frequencies alone give, for s < W/2; the second half of the circle is its negative. re[i], im[i] belong
// to frequency 2i + 1. Splits as above, W a power of two from 4 to 64.
template <int kColumns, typename Scalar, typename Vector>
GEOLOC_FAST_INLINE void inverse_odd(const Vector* re, const Vector* im, Vector* out, int stride) {
  if constexpr (kColumns == 4) {
    out[0] = re[0];
    out[stride] = -im[0];
  } else {
    constexpr int kPairs = kColumns / 8, kStep = 64 / kColumns;
    Vector even_re[kPairs], even_im[kPairs], odd_re[kPairs], odd_im[kPairs];
    GEOLOC_FAST_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const int mirror = 2 * kPairs - 1 - i, f = 2 * i + 1;
      const Scalar c = static_cast<Scalar>(cosine_of_64(f * kStep)), s = static_cast<Scalar>(sine_of_64(f * kStep));
      even_re[i] = re[i] + re[mirror];
      even_im[i] = im[i] - im[mirror];
      const Vector difference_re = re[i] - re[mirror], difference_im = im[i] + im[mirror];
      odd_re[i] = difference_re * c - difference_im * s;
      odd_im[i] = difference_re * s + difference_im * c;
    }
    inverse_odd<kColumns / 2, Scalar>(even_re, even_im, out, 2 * stride);
    inverse_odd<kColumns / 2, Scalar>(odd_re, odd_im, out + stride, 2 * stride);
  }
}

// Vectors of scratch memory that either of the following takes.
constexpr int64_t transform_scratch(int64_t columns) { return 2 * columns + 64; }

template <int kLeft = kHalvings, typename Scalar, typename Vector>
GEOLOC_FAST_TRANSFORM void inverse_any(int64_t columns, const Vector* re, const Vector* im, Vector* out, int64_t stride,
                                       const Scalar* circle, int64_t points, Vector* scratch) {
  const int64_t step = points / columns, half = columns / 2;
  const Scalar* sines = circle + points;
  if (kLeft != 0 && columns % 2 == 0) {
    Vector *even_re = scratch, *even_im = even_re + half / 2 + 1;
    Vector *odd_re = even_im + half / 2 + 1, *odd_im = odd_re + half / 2 + 1;
    even_re[0] = re[0] + re[half];
    odd_re[0] = re[0] - re[half];
    for (int64_t f = 1; 2 * f < half; ++f) {
      const Scalar c = circle[f * step], s = sines[f * step];
      even_re[f] = re[f] + re[half - f];
      even_im[f] = im[f] - im[half - f];
      const Vector difference_re = re[f] - re[half - f], difference_im = im[f] + im[half - f];
      odd_re[f] = difference_re * c - difference_im * s;
      odd_im[f] = difference_re * s + difference_im * c;
    }
    if (half % 2 == 0) {
      even_re[half / 2] = re[half / 2];
      odd_re[half / 2] = -im[half / 2];
    }
    inverse_any<fewer(kLeft)>(half, even_re, even_im, out, 2 * stride, circle, points, odd_im + half / 2 + 1);
    inverse_any<fewer(kLeft)>(half, odd_re, odd_im, out + stride, 2 * stride, circle, points, odd_im + half / 2 + 1);
    return;
  }
  Vector sum = re[0];
  for (int64_t f = 1; f <= half; ++f) sum += re[f];
  out[0] = sum;
  for (int64_t s = 1; s <= half; ++s) {
    Vector even = re[0], odd = {};
    for (int64_t f = 1, at = s; f <= half; ++f, at = at + s < columns ? at + s : at + s - columns) {
      even += re[f] * circle[at * step];
      odd += im[f] * sines[at * step];
    }
    out[s * stride] = even - odd;
    out[(columns - s) * stride] = even + odd;
  }
}

template <int kLeft = kHalvings, typename Scalar, typename Vector>
GEOLOC_FAST_TRANSFORM void forward_any(int64_t columns, const Vector* in, int64_t stride, Vector* re, Vector* im,
                                       const Scalar* circle, int64_t points, Vector* scratch) {
  const int64_t step = points / columns, half = columns / 2;
  const Scalar* sines = circle + points;
  if (kLeft != 0 && columns % 2 == 0) {
    Vector *even_re = scratch, *even_im = even_re + half / 2 + 1;
    Vector *odd_re = even_im + half / 2 + 1, *odd_im = odd_re + half / 2 + 1;
    forward_any<fewer(kLeft)>(half, in, 2 * stride, even_re, even_im, circle, points, odd_im + half / 2 + 1);
    forward_any<fewer(kLeft)>(half, in + stride, 2 * stride, odd_re, odd_im, circle, points, odd_im + half / 2 + 1);
    re[0] = even_re[0] + odd_re[0];
    re[half] = even_re[0] - odd_re[0];
    for (int64_t f = 1; 2 * f < half; ++f) {
      const Scalar c = circle[f * step], s = sines[f * step];
      const Vector turned_re = odd_re[f] * c + odd_im[f] * s, turned_im = odd_im[f] * c - odd_re[f] * s;
      re[f] = even_re[f] + turned_re;
      re[half - f] = even_re[f] - turned_re;
      im[f] = turned_im + even_im[f];
      im[half - f] = turned_im - even_im[f];
    }
    if (half % 2 == 0) {
      re[half / 2] = even_re[half / 2];
      im[half / 2] = -odd_re[half / 2];
    }
    return;
  }
  re[0] = in[0];
  for (int64_t n = 1; n < columns; ++n) re[0] += in[n * stride];
  for (int64_t f = 1; f <= half; ++f) {
    Vector sum_re = in[0], sum_im = {};
    for (int64_t n = 1, at = f; n <= half; ++n, at = at + f < columns ? at + f : at + f - columns) {
      const Vector here = in[n * stride], mirror = in[(columns - n) * stride];
      sum_re += (here + mirror) * circle[at * step];
      sum_im += (mirror - here) * sines[at * step];
    }
    re[f] = sum_re;
    im[f] = sum_im;
  }
}

}  // namespace
