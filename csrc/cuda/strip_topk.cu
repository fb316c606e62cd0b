// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "cuda/device_guard.h"
#include "cuda/strip_topk.cuh"

namespace geoloc_fast::cuda {
namespace {

bool sizes_fit(const StripTopkParams& p) {
  // Query slots and list lengths are 32-bit.
  return p.bank.columns >= 1 && p.bank.columns <= kMaxStripColumns && p.bank.values >= 1 && p.k >= 1 &&
         p.k <= (int64_t{1} << 28) && p.padded_width >= 1 && p.padded_width <= p.bank.columns &&
         p.batch < (int64_t{1} << 27);
}

// Blocks of a kernel that goes over the queries, or over their lists.
int64_t query_blocks(const StripTopkParams& p) { return std::min<int64_t>(p.batch, 1 << 16); }
int64_t rescore_blocks(const TopkPlan& plan, const StripTopkParams& p, const DeviceLimits& limits) {
  return std::min((p.batch * plan.slots + kExactWarps - 1) / kExactWarps, int64_t{4} * limits.multiprocessors);
}

// Hands out aligned pieces of a workspace; without memory it only counts.
struct Carver {
  uint8_t* memory;
  int64_t used = 0;
  template <typename T>
  void take(T** piece, int64_t n) {
    *piece = memory ? reinterpret_cast<T*>(memory + used) : nullptr;
    used += (n * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
};

int64_t carve(TopkWork& work, const DeviceLimits& limits, void* workspace) {
  const StripTopkParams& p = work.p;
  const TopkPlan& plan = work.plan;
  const int64_t query_slots = plan.tiles * kTileQueries;
  Carver carver{static_cast<uint8_t*>(workspace)};
  carver.take(&work.proven, query_slots);  // first: it begins as zeros
  carver.take(&work.energy, p.batch);
  carver.take(&work.slot_of, p.batch);
  carver.take(&work.slot_query, query_slots);
  carver.take(&work.tile_width, plan.tiles);
  carver.take(&work.known, p.batch);
  carver.take(&work.known_row, p.batch);
  carver.take(&work.best, p.batch * p.k);
  if (plan.form != TopkForm::kExact) {
    carver.take(&work.epsilon, query_slots);
    carver.take(&work.operands, plan.tiles * p.bank.columns * plan.steps * 64);
  }
  carver.take(&work.count, query_slots * plan.slots);
  carver.take(&work.lists, query_slots * plan.slots * plan.list);
  // The rescoring of W = 1, 16 and 64 happens in shared memory, all else here.
  const bool fixed = has_fixed_transform(p.bank.columns);
  int64_t warps = plan.grid_x * plan.grid_y * plan.warps;
  if (!fixed) warps = std::max(warps, rescore_blocks(plan, p, limits) * kExactWarps);
  carver.take(&work.space, warps * exact_doubles(p.bank.columns, fixed));
  return carver.used;
}

template <int kColumns>
Status rescore(const TopkWork& work, const DeviceLimits& limits, Stream stream) {
  const int64_t shared = kColumns ? 8 * kExactWarps * exact_doubles(kColumns, true) : 0;
  return launch(strip_topk_rescore_kernel<kColumns>, rescore_blocks(work.plan, work.p, limits), 1, 32 * kExactWarps,
                shared, stream, work);
}

template <int kColumns, int kTiles>
Status screen(const TopkWork& work, Stream stream) {
  const TopkPlan& plan = work.plan;
  return launch(work.p.bank.bf16 ? strip_topk_screen_kernel<kColumns, kTiles, true>
                                 : strip_topk_screen_kernel<kColumns, kTiles, false>,
                plan.grid_x, plan.grid_y, 32 * plan.warps, plan.shared, stream, work);
}

template <int kColumns>
Status look(const TopkWork& work, const DeviceLimits& limits, Stream stream) {
  const TopkPlan& plan = work.plan;
  Status status;
  if (plan.form == TopkForm::kExact) {
    status = launch(strip_topk_exact_kernel<kColumns>, plan.grid_x, plan.grid_y, 32 * kExactWarps, 0, stream, work);
  } else {
    const int64_t slots = plan.tiles * kTileQueries;
    status = launch(strip_topk_operands_kernel, std::min<int64_t>((slots + kOperandWarps - 1) / kOperandWarps, 1 << 14),
                    1, 32 * kOperandWarps, 0, stream, work);
    if (status != Status::kOk) return status;
    if constexpr (kColumns > 1) status = screen<kColumns, 1>(work, stream);
    if constexpr (kColumns == 1)
      status = plan.tiles_a_warp == 1 ? screen<1, 1>(work, stream) : screen<1, 8>(work, stream);
  }
  if (status == Status::kOk)
    status = launch(strip_topk_select_kernel, query_blocks(work.p), 1, kSelectThreads, 0, stream, work);
  return status == Status::kOk ? rescore<kColumns>(work, limits, stream) : status;
}

}  // namespace

int64_t strip_topk_workspace(const StripTopkParams& p, const DeviceLimits& limits) {
  if (!sizes_fit(p) || p.batch == 0) return 0;
  TopkWork work{};
  work.p = p;
  work.plan = strip_topk_plan(p, limits);
  return carve(work, limits, nullptr);
}

Status strip_topk(const StripTopkParams& p, const DeviceLimits& limits, int device, void* stream_pointer,
                  char plan[kMaxPlanName]) {
  if (!sizes_fit(p)) return Status::kBadSize;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const Stream stream = static_cast<Stream>(stream_pointer);
  TopkWork work{};
  work.p = p;
  work.plan = strip_topk_plan(p, limits);
  std::snprintf(plan, kMaxPlanName, "%s/%s", p.bank.bf16 ? "bf16" : "tf32", form_name(work.plan.form, p.bank.columns));
  if (p.batch == 0) return Status::kOk;
  carve(work, limits, p.workspace);

  StripScoreParams queries{};
  queries.bank = p.bank, queries.query = p.query, queries.width = p.width;
  queries.batch = p.batch, queries.padded_width = p.padded_width;
  Status status = fill_bytes(work.proven, 0, work.plan.tiles * kTileQueries * int64_t{sizeof(uint32_t)}, stream);
  if (status == Status::kOk) status = launch_query_energies(queries, work.energy, stream);
  if (status == Status::kOk) status = launch(strip_topk_order_kernel, 1, 1, kOrderThreads, 0, stream, work);
  if (status != Status::kOk) return status;
  switch (p.bank.columns) {
    case 1: status = look<1>(work, limits, stream); break;
    case 16: status = look<16>(work, limits, stream); break;
    case 64: status = look<64>(work, limits, stream); break;
    default: status = look<0>(work, limits, stream); break;
  }
  if (status != Status::kOk) return status;
  return launch(strip_topk_answer_kernel, query_blocks(p), 1, kSelectThreads, 0, stream, work);
}

}  // namespace geoloc_fast::cuda
