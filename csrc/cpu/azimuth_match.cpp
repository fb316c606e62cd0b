// SPDX-License-Identifier: Apache-2.0
#include "geoloc_fast/azimuth_match.h"

#include "cpu/azimuth_space.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace geoloc_fast::cpu {

GEOLOC_FAST_DECLARE_KERNEL(Status, azimuth_match, (const AzimuthMatchParams& params, int threads))
GEOLOC_FAST_DECLARE_KERNEL(Status, azimuth_match_backward, (const AzimuthMatchBackwardParams& params, int threads))

AzimuthPlan azimuth_match_plan(const AzimuthMatchSize& size) {
  return size.backward ? backward_plan(size) : forward_plan(size);
}

int64_t azimuth_match_workspace(const AzimuthMatchSize& size, AzimuthPlan plan, int threads) {
  return match_space(size, plan, threads, nullptr).bytes;
}

namespace {
double multiply_adds(const StripTensor& query, const StripTensor& strips) {
  return 2.0 * static_cast<double>(query.items) * static_cast<double>(strips.items) *
         static_cast<double>(strips.channels * strips.height * strips.columns);
}
}  // namespace

Status azimuth_match(const AzimuthMatchParams& params, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(azimuth_match)(params,
                                                worth_threads(multiply_adds(params.query, params.strips), threads));
}

Status azimuth_match_backward(const AzimuthMatchBackwardParams& params, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(azimuth_match_backward)(
      params, worth_threads(2 * multiply_adds(params.query, params.strips), threads));
}

}  // namespace geoloc_fast::cpu
