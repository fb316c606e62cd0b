// Launch choices of polar_resample: pure functions of the shape, testable without a GPU.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace geoloc_fast::cuda {

constexpr int kPolarThreads = 256;

// One thread a pixel; beyond 2^20 blocks the grid-stride loop takes over, so no grid limit is ever met.
inline unsigned polar_blocks(int64_t pixels) {
  const int64_t blocks = (pixels + kPolarThreads - 1) / kPolarThreads;
  return static_cast<unsigned>(blocks < (int64_t{1} << 20) ? blocks : (int64_t{1} << 20));
}

}  // namespace geoloc_fast::cuda
