// Products of two packed operands, one slot a warp: 32 rows x 16 kGroups columns in registers.
// SPDX-License-Identifier: Apache-2.0
//
//   left [terms][parts][32], right [terms][parts][32] (of which 16 kGroups, from `right_first`)  ->  sum over terms
//
// A warp streams its own two operands through shared memory, two stages deep, and waits for nobody else. Lane l holds
// rows 4 (l / 4) .. + 3 and columns 4 (l % 4) .. + 3 of every 16: with kGroups = 2 and complex numbers a term is 6
// shared-memory loads of 16 bytes (24 cycles of the memory, neighbours sharing them) for 128 multiply-adds (32 cycles
// of the four schedulers), so the multiply-adds decide.
#pragma once
#include "cuda/azimuth_match_heuristics.h"
#include "cuda/device.h"

namespace geoloc_fast::cuda {

enum class Product {
  kReal,       // one part: left right
  kPairwise,   // each part for itself: slot 0 of a spectrum, two real numbers
  kConjugate,  // conj(left) right
  kComplex,    // left right
};

template <int kParts, int kGroups>
struct Sums {
  float value[kParts][4][4 * kGroups];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4 * kGroups; ++j) value[part][i][j] = 0.0f;
  }
};

// Floats of both stages of one warp.
GEOLOC_FAST_HD constexpr int64_t stage_floats(int parts, int groups, int depth) {
  return int64_t{2} * depth * parts * (kTile + 16 * groups);
}

template <int kParts, int kGroups, int kDepth>
__device__ __forceinline__ void load_stage(const float* left, const float* right, float* stage) {
  constexpr int kLeft = kDepth * kParts * kTile / 4, kRight = kDepth * kParts * kGroups * 4;  // 16-byte pieces
  const int lane = lane_id();
#pragma unroll
  for (int n = 0; n < kLeft / 32; ++n) copy_async16(stage + (n * 32 + lane) * 4, left + (n * 32 + lane) * 4);
#pragma unroll
  for (int n = 0; n < (kRight + 31) / 32; ++n) {
    const int piece = n * 32 + lane, row = piece / (4 * kGroups), at = piece % (4 * kGroups);
    if (piece < kRight) copy_async16(stage + (kLeft + piece) * 4, right + row * kTile + at * 4);
  }
  copy_async_commit();
}

// sums += the product over `terms` (a multiple of kDepth) terms. The whole warp calls it.
template <Product kProduct, int kParts, int kGroups, int kDepth>
__device__ __forceinline__ void accumulate(const float* left, const float* right, int terms, float* stages,
                                           Sums<kParts, kGroups>& sums) {
  static_assert((kProduct == Product::kReal) == (kParts == 1));
  constexpr int kStage = static_cast<int>(stage_floats(kParts, kGroups, kDepth)) / 2, kColumns = 16 * kGroups;
  constexpr int kTerm = kParts * kTile;
  const int row = lane_id() / 4 * 4, column = lane_id() % 4 * 4;
  load_stage<kParts, kGroups, kDepth>(left, right, stages);
  int at = 0;
  for (int term = 0; term < terms; term += kDepth, at ^= 1) {
    if (term + kDepth < terms) {
      load_stage<kParts, kGroups, kDepth>(left + (term + kDepth) * kTerm, right + (term + kDepth) * kTerm,
                                          stages + (at ^ 1) * kStage);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    sync_warp();
    const float* from = stages + at * kStage;
    const float* other = from + kDepth * kTerm;
#pragma unroll 1  // a second term at hand would cost the registers of a second block
    for (int k = 0; k < kDepth; ++k) {
      float a[kParts][4], b[kParts][4 * kGroups];
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float4 four = load_vector<float4>(from + (k * kParts + part) * kTile + row);
        a[part][0] = four.x, a[part][1] = four.y, a[part][2] = four.z, a[part][3] = four.w;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          const float4 next = load_vector<float4>(other + (k * kParts + part) * kColumns + group * 16 + column);
          b[part][group * 4] = next.x, b[part][group * 4 + 1] = next.y;
          b[part][group * 4 + 2] = next.z, b[part][group * 4 + 3] = next.w;
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4 * kGroups; ++j) {
          if constexpr (kProduct == Product::kReal) {
            sums.value[0][i][j] = fmaf(a[0][i], b[0][j], sums.value[0][i][j]);
          } else {
            float& re = sums.value[0][i][j];
            float& im = sums.value[1][i][j];
            if constexpr (kProduct == Product::kPairwise) {
              re = fmaf(a[0][i], b[0][j], re);
              im = fmaf(a[1][i], b[1][j], im);
            } else if constexpr (kProduct == Product::kConjugate) {
              re = fmaf(a[1][i], b[1][j], fmaf(a[0][i], b[0][j], re));
              im = fmaf(-a[1][i], b[0][j], fmaf(a[0][i], b[1][j], im));
            } else {
              re = fmaf(-a[1][i], b[1][j], fmaf(a[0][i], b[0][j], re));
              im = fmaf(a[1][i], b[0][j], fmaf(a[0][i], b[1][j], im));
            }
          }
        }
    }
    sync_warp();
  }
}

// A lane's sums to out[part * part_stride + row * row_stride + column]; `add`: to what is there.
template <int kParts, int kGroups>
__device__ __forceinline__ void put_sums(const Sums<kParts, kGroups>& sums, float* out, int64_t part_stride,
                                         int64_t row_stride, bool add) {
  const int row = lane_id() / 4 * 4, column = lane_id() % 4 * 4;
#pragma unroll
  for (int part = 0; part < kParts; ++part)
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        float* to = out + part * part_stride + (row + i) * row_stride + group * 16 + column;
        const float* value = sums.value[part][i] + group * 4;
        float4 four = make_float4(value[0], value[1], value[2], value[3]);
        if (add) {
          const float4 before = load_vector<float4>(to);
          four.x += before.x, four.y += before.y, four.z += before.z, four.w += before.w;
        }
        store_vector(to, four);
      }
}

}  // namespace geoloc_fast::cuda
