// SPDX-License-Identifier: Apache-2.0
#include "geoloc_fast/gumbel_noise.h"

#include "cpu/isa.h"

namespace geoloc_fast::cpu {

GEOLOC_FAST_DECLARE_KERNEL(void, gumbel_noise, (uint64_t seed, float* out, int64_t count, int threads))

void gumbel_noise(uint64_t seed, float* out, int64_t count, int threads) {
  GEOLOC_FAST_PICK_KERNEL(gumbel_noise)(seed, out, count, threads);
}

}  // namespace geoloc_fast::cpu
