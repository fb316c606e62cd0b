// azimuth_match: every query slid round every strip; the best window of each pair, its shift and its score.
// SPDX-License-Identifier: Apache-2.0
//
//   correlation[b, r, s] = sum_{k, x < w_b} query[b, k, x] strip[r, k, (s + x) mod W]      k = (c, h): K = C H values
//   energy[b, r, s]      = sum_{k, x < w_b} strip[r, k, (s + x) mod W]^2                   of the window at shift s
//   cosine               = correlation / sqrt(|query|^2 energy), 0 where energy <= 1e-6 |strip|^2 or query = 0
//   shift = first maximum over s of  correlation | cosine | logit = (scale correlation + noise) / tau
//   score = cosine[shift]
//
// Backward. With g = d loss / d score, window and energy those at the chosen shift:
//
//   slope_s          = d score / d logit_s = p_s (y_s - sum_t p_t y_t),   p = softmax(logit)           "gumbel" only
//   y_s              = correlation_s / (|query| |window|) - score <window_s, window> / energy
//   weight_s         = g (scale / tau slope_s + [s = shift] / (|query| |window|))
//   grad_query[k, x] = sum_{r, s} weight_s strip[k, s + x] - query[k, x] sum_r g score / |query|^2
//   grad_strip[k, j] = sum_{b, s} weight_s query[k, j - s] - strip[k, j] sum_b g score / energy [j in window]
//   grad_scale       = sum_{b, r} g sum_s slope_s correlation_s / tau
//
// <window_s, window> is a diagonal sum of w terms of the strip's W x W column Gram matrix. An empty window has no
// gradient, and neither has a pair with NaN or Inf in it: its score is NaN at shift 0, its neighbours see zeros.
//
// Two plans. "spectral": by the correlation theorem one product per frequency of the real transforms along azimuth,
//
//   slot 0 = (X_0, X_{W/2}), slot f = (Re X_f, Im X_f): F = ceil(W/2) slots, W numbers a value (c, h)
//
//   queries  [F][B][2][K]      one multiply-add operand is a number of this, spread over the lanes;
//   strips   [R/32][F][K][2][32 strips]          the other 32 neighbouring strips. So a product, its inverse
//                                                transform, argmax, norm and softmax happen in lanes, with no
//                                                horizontal sum, in registers and L1; only results are stored.
//
// about (2 W - 2) K multiply-adds a pair plus the inverse. "direct": the same with columns for frequencies,
// W w K multiply-adds: for one-column queries and strips. The backward of "gumbel" is two more products per
// frequency with the transformed weights, summed over strips and over queries, lanes along K; the backward of the
// other selections touches one window a pair and adds it up directly ("scatter") unless it is nearly the whole strip.
// The choice is made by the cost model in cpu/azimuth_plan.h. On a GPU: cuda/azimuth_match_heuristics.h.
//
// Floor (W = 16, K = 64, fp32, 16 lanes x 2 multiply-adds a cycle): forward 60 cycles a pair, backward 120; the pair's
// memory is 4 B score + 8 B shift, with "gumbel" 64 B noise and 64 B slope. Extra memory: the packed inputs (four
// times their size at most) and, in the backward, 4 W B R bytes of weights.
//
// Numerics. Inputs are converted to fp32 and scaled by a power of two each, so that no intermediate over- or underflows
// where the result does not. Energies are summed in float64, correlations in fp32; wherever the best and another shift
// are closer than the rounding error bound, and for a score whose window holds less than 1/64 of the strip's energy,
// the correlations concerned are summed again in float64. The shift is therefore that of float64 arithmetic on every
// instruction set and plan; the score is within 1e-6. Gradients are fp32 sums; products per frequency mix a window with
// the rest of its strip, so what a thin window adds is known to about 2e-7 |strip| / |window| of itself. Every sum has
// one order: results are the same bits for any number of threads.
#pragma once
#include "geoloc_fast/types.h"

namespace geoloc_fast {

enum class Selection : int32_t { kCorrelation = 0, kCosine = 1, kGumbel = 2 };
enum class AzimuthPlan : int32_t { kAuto = -1, kDirect = 0, kSpectral = 1, kScatter = 2 };

// [items, channels, height, columns], any strides (in elements).
struct StripTensor {
  const void* data;
  DType dtype;  // kFloat32, kBFloat16 or kFloat16
  int64_t items, channels, height, columns;
  int64_t stride[4];
};

struct AzimuthMatchParams {
  StripTensor query;           // B items of Wq columns
  StripTensor strips;          // R items of W columns
  const int64_t* query_width;  // [B], clamped to 0 .. Wq; null: all Wq
  Selection select;
  double scale, tau;           // kGumbel only, like noise
  const double* device_scale;  // CUDA reads the scale here, on the device
  const float* noise;          // [B, R, W]
  int64_t noise_stride[3];     // fastest with W or R contiguous
  float* score;                // [B, R]
  int64_t* shift;              // [B, R]
  float* slope;                // [B, W, R] d score / d logit; null unless wanted
  float* scale_slope;          // [B, R] d score / d scale; null with slope
  AzimuthPlan plan;            // kDirect or kSpectral
  void* workspace;             // azimuth_match_workspace() bytes, 64-byte aligned
};

struct AzimuthMatchBackwardParams {
  StripTensor query, strips;
  const int64_t* query_width;
  Selection select;
  double scale, tau;
  const double* device_scale;
  const float* grad_score;  // [B, R]
  const float* score;       // what the forward gave
  const int64_t* shift;
  const float* slope;        // null unless kGumbel
  const float* scale_slope;  // null unless kGumbel
  float* grad_query;         // [B, C, H, Wq] contiguous
  float* grad_strips;        // [R, C, H, W] contiguous
  double* grad_scale;        // one number; null unless kGumbel
  AzimuthPlan plan;          // kSpectral or kScatter
  void* workspace;
};

// Sizes, for the choice of a plan and the bytes of work space.
struct AzimuthMatchSize {
  int64_t batch, references, values, query_columns, columns;  // B, R, K = C H, Wq, W
  bool mixed_widths;                                          // query_width is given
  Selection select;
  bool slope;     // forward: slope is wanted
  bool backward;  // the backward pass
};

namespace cpu {
AzimuthPlan azimuth_match_plan(const AzimuthMatchSize& size);
int64_t azimuth_match_workspace(const AzimuthMatchSize& size, AzimuthPlan plan, int threads);
Status azimuth_match(const AzimuthMatchParams& params, int threads);
Status azimuth_match_backward(const AzimuthMatchBackwardParams& params, int threads);
}  // namespace cpu

// Everything on `device`, work space (256-byte aligned) and grad_scale included; only launches, on `stream`.
namespace cuda {
constexpr int64_t kMaxStripColumns = 4096;  // of a strip; there is no other limit
AzimuthPlan azimuth_match_plan(const AzimuthMatchSize& size);
int64_t azimuth_match_workspace(const AzimuthMatchSize& size, AzimuthPlan plan);
// Shared memory that a block of the forward wants, up to 160 KB: more than GPUs of compute capability 8.6 and 8.9 have.
int64_t azimuth_match_shared_bytes(const AzimuthMatchSize& size, AzimuthPlan plan);
Status azimuth_match(const AzimuthMatchParams& params, int device, void* stream);
Status azimuth_match_backward(const AzimuthMatchBackwardParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace geoloc_fast
