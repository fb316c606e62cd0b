// How packing, unpacking and scoring are launched: a warp a strip or a pair. Pure functions, testable without a GPU.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cstdint>

namespace geoloc_fast::cuda {

constexpr int kExactWarps = 4;  // of a block: at W = 64 they fill 100 KiB of shared memory
// Warps whose work space lies in global memory: no more than fit in this much.
constexpr int64_t kExactBytes = 128 << 20;

// Blocks for `items`; `global_doubles` of work space a warp (0: it works in shared memory).
inline int64_t exact_blocks(int64_t items, int64_t global_doubles) {
  int64_t blocks = std::min<int64_t>((items + kExactWarps - 1) / kExactWarps, 1 << 14);
  if (global_doubles > 0)
    blocks = std::min(blocks, std::max<int64_t>(1, kExactBytes / (8 * kExactWarps * global_doubles)));
  return blocks;
}

}  // namespace geoloc_fast::cuda
