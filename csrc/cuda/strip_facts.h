// What azimuth operators refuse, and their first launch.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cuda/azimuth_match_heuristics.h"
#include "cuda/device.h"

namespace geoloc_fast::cuda {

inline bool known(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

inline bool sound(const StripTensor& query, const StripTensor& strips) {
  return query.channels == strips.channels && query.height == strips.height && query.columns >= 1 &&
         query.columns <= strips.columns && strips.columns <= kMaxStripColumns && query.items < INT32_MAX &&
         strips.items < INT32_MAX && query.channels * query.height * 2 * kTile * (strips.columns + 1) < INT32_MAX;
}

// Fills `facts` for every item, and up to the next multiple of kTile.
Status launch_facts(const StripTensor& t, const int64_t* widths, const ItemFacts& facts, Stream stream);

}  // namespace geoloc_fast::cuda
