// SPDX-License-Identifier: Apache-2.0
#include "geoloc_fast/strip_bank.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>

#include "cpu/isa.h"
#include "cpu/slots.h"
#include "cpu/threads.h"

namespace geoloc_fast::cpu {

void strip_bank_memory([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // advice: it may fail
#endif
}

GEOLOC_FAST_DECLARE_KERNEL(int64_t, strip_bank_scratch, (int64_t columns))
GEOLOC_FAST_DECLARE_KERNEL(void, strip_pack,
                           (const StripBankView& view, uint8_t* blocks, const float* strips, const double* circle,
                            void* scratch, int64_t first_block, int64_t last_block))
GEOLOC_FAST_DECLARE_KERNEL(void, strip_unpack,
                           (const StripBankView& view, const int64_t* index, float* out, const double* circle,
                            void* scratch, int64_t first, int64_t last))

int64_t strip_pack_workspace(int64_t columns, int threads) {
  return GEOLOC_FAST_PICK_KERNEL(strip_bank_scratch)(columns) * std::max(threads, 1);
}

int64_t strip_unpack_workspace(int64_t columns, int threads) { return strip_pack_workspace(columns, threads); }

Status strip_pack(const StripBankView& view, uint8_t* blocks, const float* strips, const double* circle,
                  void* workspace, int threads) {
  if (view.columns < 1 || view.columns > kMaxStripColumns || view.values < 1) return Status::kBadSize;
  const auto kernel = GEOLOC_FAST_PICK_KERNEL(strip_pack);
  const int64_t scratch = strip_pack_workspace(view.columns, 1);
  for_slots((view.count + kStripLanes - 1) / kStripLanes, 4, threads, [&](int slot, int64_t begin, int64_t end) {
    kernel(view, blocks, strips, circle, static_cast<uint8_t*>(workspace) + slot * scratch, begin, end);
  });
  return Status::kOk;
}

Status strip_unpack(const StripBankView& view, const int64_t* index, int64_t n, float* out, const double* circle,
                    void* workspace, int threads) {
  if (view.columns < 1 || view.columns > kMaxStripColumns || view.values < 1) return Status::kBadSize;
  for (int64_t i = 0; i < n; ++i)
    if (index[i] < 0 || index[i] >= view.count) return Status::kBadSize;
  const auto kernel = GEOLOC_FAST_PICK_KERNEL(strip_unpack);
  const int64_t scratch = strip_unpack_workspace(view.columns, 1);
  for_slots(n, 16, threads, [&](int slot, int64_t begin, int64_t end) {
    kernel(view, index, out, circle, static_cast<uint8_t*>(workspace) + slot * scratch, begin, end);
  });
  return Status::kOk;
}

}  // namespace geoloc_fast::cpu
