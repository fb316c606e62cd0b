// The bytes of a bank of strips: packing and unpacking them.
// SPDX-License-Identifier: Apache-2.0
//
// A strip of K = C*H channels and W columns is stored as its orthonormal real Fourier transform along azimuth:
//
//   plane 0              sum_n x[n] / sqrt(W)
//   plane 2f-1, 2f       sqrt(2/W) sum_n x[n] cos(2 pi f n / W),   -sqrt(2/W) sum_n x[n] sin(2 pi f n / W)
//   plane W-1 (W even)   sum_n x[n] (-1)^n / sqrt(W)
//
// Sixteen strips make a block, interleaved, so that lanes are strips and no sum crosses lanes:
//
//                 lane 0     lane 1           lane 15
//   plane 0     | word 0   | word 0   | ... | word 0   |  64 bytes: one line
//               | word 1   | word 1   | ... | word 1   |
//                 ...
//   plane W-1   | word n-1 | word n-1 | ... | word n-1 |  n = K (fp32), ceil(K/2) (bf16: two channels a word,
//   energies    | column 0 | column 0 | ... | column 0 |      the lower channel in the low half)
//                 ...
//               | column W-1                           |
//
// A block takes 64 W (n + 1) bytes and begins at a multiple of 64. `energies` are float32 sums over the channels
// of the squared columns of the strip as stored. Unused lanes of the last block are 0.
//
// Numerics: transforms in float64 with a fixed order of sums and no contraction, one rounding to what is stored
// (through float32 for bf16); so every instruction set writes the same bytes and reads the same values.
// Packing reads 4 K W bytes a strip and does two fast transforms of it (the second is for the energies).
#pragma once
#include "geoloc_fast/types.h"

namespace geoloc_fast {

constexpr int kStripLanes = 16;
constexpr int64_t kMaxStripColumns = 4096;  // of the native kernels, whose scratch memory grows with W

struct StripBankView {
  const uint8_t* blocks;  // aligned to 64 bytes
  int64_t count;          // strips
  int64_t values;         // K
  int64_t columns;        // W
  bool bf16;              // else fp32
  int64_t words;          // 32-bit words a plane and strip
  int64_t block_bytes;
};

// Null blocks are allowed when count is 0. The view is as good as the bytes it is told about.
static inline StripBankView strip_bank_view(const void* blocks, int64_t count, int64_t values, int64_t columns,
                                            bool bf16) {
  StripBankView view{static_cast<const uint8_t*>(blocks), count, values, columns, bf16, 0, 0};
  view.words = bf16 ? (values + 1) / 2 : values;
  view.block_bytes = 4 * kStripLanes * columns * (view.words + 1);
  return view;
}

// The kernels read a table `circle`: cos, then sin, of 2 pi i / W for i < W, float64 [2][W].

namespace cpu {

// Tells the system, before the memory of a bank is written, that large pages will serve it: a search reads many planes
// at once, and with pages of 4 KB (one plane of 16x4x16 in fp32) it waits for their addresses as long as for the data.
void strip_bank_memory(void* memory, int64_t bytes);

// Packs `view.count` strips, float32 [count][K][W], into `blocks` (the memory of the view, to be written).
Status strip_pack(const StripBankView& view, uint8_t* blocks, const float* strips, const double* circle,
                  void* workspace, int threads);
int64_t strip_pack_workspace(int64_t columns, int threads);

// Row index[i] of the bank as float32 [n][K][W]. kBadSize, with nothing read, if an index is outside the bank.
Status strip_unpack(const StripBankView& view, const int64_t* index, int64_t n, float* out, const double* circle,
                    void* workspace, int threads);
int64_t strip_unpack_workspace(int64_t columns, int threads);

}  // namespace cpu

namespace cuda {

// The same bytes and values by kernels on `stream` of `device`, at once and without a look at the data: a row of
// strip_unpack that is outside the bank is answered with NaN. All pointers, `circle` too, are the device's.
Status strip_pack(const StripBankView& view, uint8_t* blocks, const float* strips, const double* circle,
                  void* workspace, int device, void* stream);
Status strip_unpack(const StripBankView& view, const int64_t* index, int64_t n, float* out, const double* circle,
                    void* workspace, int device, void* stream);
int64_t strip_pack_workspace(const StripBankView& view);
int64_t strip_unpack_workspace(const StripBankView& view, int64_t n);

}  // namespace cuda
}  // namespace geoloc_fast
