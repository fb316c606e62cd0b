// azimuth_crop: the b-th query slid round the b-th strip, and the window it chose.
// SPDX-License-Identifier: Apache-2.0
//
//   correlation, energy, cosine, shift and score as in azimuth_match.h, for pairs (b, b) only
//   crop[b, k, x] = strip[b, k, (shift + x) mod W] / sqrt(energy[shift])    x < w_b; 0 beyond, and for an empty window
//
// Backward, with G = d loss / d crop, g = d loss / d score and window the chosen one:
//
//   V = (G - crop <crop, G>) / |window| + g (query / (|query| |window|) - score window / energy)       d loss / d
//   window grad_query = g (window / (|query| |window|) - score query / |query|^2),     grad_strip at the window = V and
//   with "gumbel", p = softmax(logit), y_s = <V, window_s>, a_s = p_s (y_s - sum_t p_t y_t): grad_query += scale / tau
//   sum_s a_s window_s,    grad_strip += scale / tau sum_s a_s (query moved to s) grad_scale  = sum_s a_s correlation_s
//   / tau
//
// Layout: rows [k][columns] as they come, strips with their first columns again after the last, so that a window is
// contiguous and sixteen neighbouring shifts are the lanes of an unaligned load:
//
//   row k:  | 0 1 2 ... W-1 | 0 1 ... Wq-1 |        correlation[s .. s+15] += query[k, x] * load(row_k + s + x)
//
// A pair shares nothing with another, so there is no product to block: W w K multiply-adds at half rate (two loads
// each) a pair against 4 (W + 2 w) K bytes moved; up to W = 16 both take about the same time. The backward computes the
// correlation again rather than have it kept. Numerics as in azimuth_match.h.
#pragma once
#include "geoloc_fast/azimuth_match.h"

namespace geoloc_fast {

struct AzimuthCropParams {
  StripTensor query, strips;   // B items each
  const int64_t* query_width;  // [B], clamped to 0 .. Wq; null: all Wq
  Selection select;
  double scale, tau;           // kGumbel only, like noise
  const double* device_scale;  // CUDA reads the scale here, on the device
  const float* noise;          // [B, W]
  int64_t noise_stride[2];
  float* crop;      // [B, C, H, Wq] contiguous
  float* score;     // [B]
  int64_t* shift;   // [B]
  void* workspace;  // azimuth_crop_workspace() bytes, 64-byte aligned
};

struct AzimuthCropBackwardParams {
  StripTensor query, strips;
  const int64_t* query_width;
  Selection select;
  double scale, tau;
  const double* device_scale;
  const float* noise;
  int64_t noise_stride[2];
  const float* grad_crop;   // [B, C, H, Wq] contiguous
  const float* grad_score;  // [B]
  const float* score;       // what the forward gave
  const int64_t* shift;
  float* grad_query;   // [B, C, H, Wq] contiguous
  float* grad_strips;  // [B, C, H, W] contiguous
  double* grad_scale;  // [B], to be added up; null unless kGumbel
  void* workspace;
};

namespace cpu {
int64_t azimuth_crop_workspace(int64_t values, int64_t query_columns, int64_t columns, int threads);
Status azimuth_crop(const AzimuthCropParams& params, int threads);
Status azimuth_crop_backward(const AzimuthCropBackwardParams& params, int threads);
}  // namespace cpu

// Everything on `device`, work space (256-byte aligned) included; only launches, on `stream`.
namespace cuda {
int64_t azimuth_crop_workspace(int64_t batch, int64_t columns);
// What a block wants; more than the device has is a launch that fails.
int64_t azimuth_crop_shared_bytes(int64_t values, int64_t query_columns, int64_t columns);
Status azimuth_crop(const AzimuthCropParams& params, int device, void* stream);
Status azimuth_crop_backward(const AzimuthCropBackwardParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace geoloc_fast
