// polar_resample: satellite images, seen from their centre, as strips of azimuth columns.
// SPDX-License-Identifier: Apache-2.0
//
//   theta(b, j) = column0_deg + heading_deg[b] + 360 j / W                   degrees, clockwise from north
//   radius(b, i) = R[b] (H - 1 - i) / H   "inner"      or   R[b] (H - i) / H   "outer"
//   row = center_row[b] - radius cos(theta)            north is up: a smaller row
//   col = center_col[b] + radius sin(theta)            east is right: a larger column
//   out[b, c, i, j] = (bilinear(images[b, c], row, col) - mean[c]) / std[c]
//
//   image (S x S)                     strip (H x W), column0_deg = 180
//        north                        +--------------------------------+  i = 0: the horizon
//      +-------+                      |   west     north      east     |
//      |   |   |  west .. east  --->  |                                |
//      +-------+                      +--------------------------------+  i = H-1: the centre
//        south                        j = 0: south          j = W/2: north
//
// Pixel 0 of the image sits at 0.0 (index units). A tap outside the image counts as 0 (kZeros) or as the
// nearest pixel (kReplicate); with kZeros the mean is subtracted from that 0 like from any other value.
// A position that is not finite has no taps inside: 0 with kZeros, pixel (0, 0) with kReplicate.
//
// Backward: grad_images[b, c] gets weight * grad_out / std at each tap, which is the transpose of the above.
//
// Numerics: coordinates in float64 on the CPU and float32 on the GPU, weights and sums in float32, one
// rounding to the output type; a uint8 output is rounded to nearest even and clamped. A pixel of weight 0 is
// not read into a sum, so its NaN or Inf does not spread; in the backward it gets nothing, whatever grad_out is.
// The CPU's uint8 paths round coordinates to 2^-14 pixel and weights to 2^-14, such that the four weights of a
// position inside the image sum to 1: at worst 0.05 grey levels from exact, and a uniform image stays uniform.
//
// Determinism: on the CPU the bits do not depend on threads, batch or instruction set. Taps of the backward are
// added in the order of the output pixels (by tiles of 16 columns), whatever thread does it. On the GPU the bits of the
// forward depend on nothing either; the backward adds with atomics, in no fixed order, so its last bits vary.
//
// Cost of RGB uint8 S = 512 -> float 128 x 512, an image:
//   bytes   0.6 MB of the image's 0.79 MB (the disc) + 0.79 MB written. A copy of that takes 25-40 us a core on the
//           machine of docs/notes/benchmarks.md when both lie in DRAM.
//   loads   2 of 8 bytes a pixel (both neighbours' RGB of one row), 2 a cycle: 65536 cycles, 15 us.
//   vector  at AVX-512 and 16 pixels: 28 lane inserts, 8 byte shuffles, 8 weight shuffles, 8 multiply-adds, 4 adds,
//           7 shuffles to transpose, 9 to scale and store: 72, two to three a cycle, 28-37 us.
//   tables  one for each 16 columns x 128 rows (24 KB, on the stack), made in 28 us a whole image and shared by up
//           to eight images when the geometry is the same for all.
// Measured: 36 us with images in the last-level cache, which is the arithmetic; 90 us from DRAM.
//
// On a GPU, uint8 S = 512 -> bf16 128 x 512, an image: 0.62 MB read (the disc) and 0.39 MB written, so 256 images take
// 60 us at the 4.3 TB/s that a copy reaches on an H200. What stands in the way is the number of loads: four neighbours
// of three bytes would be 12 a pixel; RGB beside each other takes 4.5 of a word (polar_resample.cuh), so that at four
// cache lines a load the load units are busy for about 40 us. The backward reads grad_out and writes grad_images once
// to clear it; its 12 atomic additions an RGB pixel are what it waits for.
#pragma once
#include "geoloc_fast/types.h"

namespace geoloc_fast {

// What forward and backward share: where output pixels lie in the images.
struct PolarGeometry {
  int64_t batch, channels, in_rows, in_cols, out_rows, out_cols;
  const double* center;       // [batch, 2] (row, col); null: (in_rows / 2, in_cols / 2)
  const double* max_radius;   // [batch]; null: half the shorter side
  const double* heading_deg;  // [batch]; null: 0
  double column0_deg;
  bool outer_radius;
  bool replicate_border;
};

struct PolarResampleParams : PolarGeometry {
  const void* images;  // [batch, channels, in_rows, in_cols], any strides (in elements)
  void* out;           // [batch, channels, out_rows, out_cols], contiguous
  DType images_dtype;
  DType out_dtype;
  int64_t stride_batch, stride_channel, stride_row, stride_col;
  bool normalize;              // scale and shift below are used only then
  float scale[kMaxChannels];   // 1 / std
  float offset[kMaxChannels];  // -mean / std
};

struct PolarResampleBackwardParams : PolarGeometry {
  const void* grad_out;  // [batch, channels, out_rows, out_cols], contiguous; any dtype but uint8
  float* grad_images;    // [batch, channels, in_rows, in_cols], contiguous; every element is written
  DType grad_out_dtype;
  bool normalize;
  float scale[kMaxChannels];  // 1 / std
};

namespace cpu {

// How the CPU reads the images. All but kGeneric need at least 2 x 2 pixels, rows that do not overlap, a geometry
// that stays within 65000 pixels of pixel 0, and 32-bit offsets inside an image.
enum class PolarPath : int32_t {
  kGeneric = 0,  // any strides: a pixel at a time
  kRgb8 = 1,     // uint8, 3 channels beside each other (channels_last)
  kRgba8 = 2,    // uint8, 4 channels
  kPlanar8 = 3,  // uint8, columns beside each other (contiguous)
  kRgb = 4,      // the same for floats
  kRgba = 5,
  kPlanar = 6,
};
const char* polar_path_name(PolarPath path);  // "generic", "rgb8", ...
PolarPath polar_path(const PolarResampleParams& params);
PolarPath polar_path(const PolarResampleBackwardParams& params);  // kPlanar or kGeneric

Status polar_resample(const PolarResampleParams& params, int threads);
Status polar_resample_backward(const PolarResampleBackwardParams& params, int threads);

}  // namespace cpu

namespace cuda {
// Launches on `stream` (a cudaStream_t) of `device` and returns at once; pointers are device pointers.
Status polar_resample(const PolarResampleParams& params, int device, void* stream);
Status polar_resample_backward(const PolarResampleBackwardParams& params, int device, void* stream);
}  // namespace cuda

}  // namespace geoloc_fast
