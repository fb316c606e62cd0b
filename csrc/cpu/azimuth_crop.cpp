// SPDX-License-Identifier: Apache-2.0
#include "geoloc_fast/azimuth_crop.h"

#include "cpu/azimuth_crop_space.h"
#include "cpu/isa.h"
#include "cpu/threads.h"

namespace geoloc_fast::cpu {

GEOLOC_FAST_DECLARE_KERNEL(Status, azimuth_crop, (const AzimuthCropParams& params, int threads))
GEOLOC_FAST_DECLARE_KERNEL(Status, azimuth_crop_backward, (const AzimuthCropBackwardParams& params, int threads))

int64_t azimuth_crop_workspace(int64_t values, int64_t query_columns, int64_t columns, int threads) {
  return 64 + max_of(threads, 1) * crop_space(values, query_columns, columns, nullptr).bytes;
}

namespace {
double multiply_adds(const StripTensor& query, const StripTensor& strips) {
  return static_cast<double>(query.items) * static_cast<double>(query.channels * query.height) *
         static_cast<double>(query.columns * strips.columns);
}
}  // namespace

Status azimuth_crop(const AzimuthCropParams& params, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(azimuth_crop)(params,
                                               worth_threads(multiply_adds(params.query, params.strips), threads));
}

Status azimuth_crop_backward(const AzimuthCropBackwardParams& params, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(azimuth_crop_backward)(
      params, worth_threads(3 * multiply_adds(params.query, params.strips), threads));
}

}  // namespace geoloc_fast::cpu
