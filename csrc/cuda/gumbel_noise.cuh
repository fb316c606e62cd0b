// Device body of gumbel_noise. Formula: geoloc_fast/gumbel_noise.h.
// SPDX-License-Identifier: Apache-2.0
//
// A thread a counter: four words, sixteen values apart, so that half a warp writes 64 bytes at a time. 4 bytes a value
// are written and 10 rounds of two wide products make four: by the memory, 0.9 us a million values on an H200.
#pragma once
#include <cmath>

#include "cuda/device.h"

namespace geoloc_fast::cuda {

constexpr int kNoiseThreads = 256;
constexpr int64_t kNoiseBlock = 64;  // values of sixteen counters

__device__ __forceinline__ float gumbel_of(uint32_t word) {
  const float u = (static_cast<float>(word >> 9) + 0.5f) * 1.1920929e-7f;
  return -logf(-logf(u));
}

__global__ void __launch_bounds__(kNoiseThreads) gumbel_noise_kernel(const int64_t* seed, float* out, int64_t count) {
  const int64_t counter = static_cast<int64_t>(blockIdx.x) * kNoiseThreads + threadIdx.x;
  const int64_t first = counter / 16 * kNoiseBlock + counter % 16;
  if (first >= count) return;
  const uint64_t key = static_cast<uint64_t>(*seed);
  uint32_t x[4] = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0};
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{x[0]} * 0xd2511f53u, product1 = uint64_t{x[2]} * 0xcd9e8d57u;
    x[0] = static_cast<uint32_t>(product1 >> 32) ^ x[1] ^ key0;
    x[1] = static_cast<uint32_t>(product1);
    x[2] = static_cast<uint32_t>(product0 >> 32) ^ x[3] ^ key1;
    x[3] = static_cast<uint32_t>(product0);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
#pragma unroll
  for (int word = 0; word < 4; ++word)
    if (first + word * 16 < count) out[first + word * 16] = gumbel_of(x[word]);
}

}  // namespace geoloc_fast::cuda
