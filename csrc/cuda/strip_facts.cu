// SPDX-License-Identifier: Apache-2.0
#include "cuda/strip_facts.cuh"
#include "cuda/strip_facts.h"

namespace geoloc_fast::cuda {

Status launch_facts(const StripTensor& t, const int64_t* widths, const ItemFacts& facts, Stream stream) {
  return launch(azimuth_facts_kernel, round_up(t.items, kTile), 1, kItemThreads, 0, stream, t, widths, facts);
}

}  // namespace geoloc_fast::cuda
