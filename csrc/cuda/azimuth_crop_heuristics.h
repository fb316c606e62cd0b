// How azimuth_crop runs on a GPU, as pure functions of the sizes.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "cuda/azimuth_match_heuristics.h"

namespace geoloc_fast::cuda {

constexpr int kCropThreads = 256;
constexpr int64_t kCropShared = 96 << 10;  // every GPU has that, and an H200 twice

struct CropSpace {
  ItemFacts query, strips;
  int64_t bytes;
};

inline CropSpace crop_space(int64_t batch, int64_t columns, void* base) {
  CropSpace space{};
  WorkSpace work(base);
  space.query = take_facts(work, batch, 0);
  space.strips = take_facts(work, batch, columns);
  space.bytes = work.bytes();
  return space;
}

// Shared memory of a block: four numbers a shift, and the pair itself where it fits.
struct CropLaunch {
  bool shared;
  int64_t shared_bytes;
};

inline CropLaunch crop_launch(int64_t values, int64_t query_columns, int64_t columns) {
  const int64_t shifts = 4 * columns * 8, pair = values * (columns + query_columns) * 4;
  const bool fits = shifts + pair <= kCropShared;
  return {fits, fits ? shifts + pair : shifts};
}

}  // namespace geoloc_fast::cuda
