// SPDX-License-Identifier: Apache-2.0
#include "geoloc_fast/polar_resample.h"

#include "cpu/isa.h"

namespace geoloc_fast::cpu {

GEOLOC_FAST_DECLARE_KERNEL(Status, polar_resample, (const PolarResampleParams& params, int threads))

Status polar_resample(const PolarResampleParams& params, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(polar_resample)(params, threads);
}

}  // namespace geoloc_fast::cpu
