// parallel_for for tasks that need memory of their own: each runs in one of `threads` slots at a time. Pieces are
// handed out in ascending order, so what one slot sees ascends. Not for kernel sources (see simd.h).
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <atomic>

#include "cpu/threads.h"

namespace geoloc_fast::cpu {

// task(slot, begin, end) over [0, items) in pieces of `grain`; slot < max(threads, 1).
template <typename SlotTask>
void for_slots(int64_t items, int64_t grain, int threads, const SlotTask& task) {
  std::atomic<int64_t> next{0};
  auto slot_task = [&](int64_t first_slot, int64_t last_slot) {
    for (int64_t slot = first_slot; slot < last_slot; ++slot)
      for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < items;)
        task(static_cast<int>(slot), begin, std::min(items, begin + grain));
  };
  const int64_t pieces = (items + grain - 1) / grain;
  const int64_t slots = std::min<int64_t>(std::max(threads, 1), pieces);
  parallel_for(slots, 1, static_cast<int>(slots), slot_task);
}

}  // namespace geoloc_fast::cpu
