// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "common/work_space.h"
#include "cuda/device_guard.h"
#include "cuda/strip_topk_screen.cuh"
#include "cuda/strip_topk_select.cuh"

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

int64_t carve(TopkWork& work, void* workspace) {
  const StripTopkParams& p = work.p;
  const TopkPlan& plan = work.plan;
  const int64_t query_slots = plan.tiles * kTileQueries;
  WorkSpace space(workspace);
  work.proven = space.take<uint32_t>(query_slots + 1);  // first: these begin as zeros
  work.longest = work.proven + query_slots;
  work.energy = space.take<double>(p.batch);
  work.slot_of = space.take<int32_t>(p.batch);
  work.slot_query = space.take<int32_t>(query_slots);
  work.tile_width = space.take<int32_t>(plan.tiles);
  work.known = space.take<uint32_t>(p.batch);
  work.known_row = space.take<uint64_t>(p.batch);
  work.best = space.take<Kept>(p.batch * p.k);
  work.bound = space.take<QueryBound>(query_slots);
  work.operands = space.take<uint32_t>(plan.tiles * p.bank.columns * plan.steps * 64);
  work.count = space.take<int32_t>(query_slots * plan.slots);
  work.lists = space.take<Kept>(query_slots * plan.slots * plan.list);
  // Where a full list is scored; the rescoring happens in shared memory.
  work.space = space.take<double>(plan.grid_x * plan.grid_y * plan.warps * exact_doubles(p.bank.columns, true));
  return space.bytes();
}

template <int kColumns, int kTiles>
Status screen(const TopkWork& work, Stream stream) {
  const TopkPlan& plan = work.plan;
  constexpr int kUsual = kColumns == 1 ? 0 : kUsualWords;
  const bool usual = work.p.bank.words == kUsualWords;
  auto run = [&](auto kernel) {
    return launch(kernel, plan.grid_x, plan.grid_y, 32 * plan.warps, plan.shared, stream, work);
  };
  if (!work.p.bank.bf16) return run(&strip_topk_screen_kernel<kColumns, kTiles, false, 0>);
  return usual ? run(&strip_topk_screen_kernel<kColumns, kTiles, true, kUsual>)
               : run(&strip_topk_screen_kernel<kColumns, kTiles, true, 0>);
}

// From the ordered queries to pairs that have been scored.
template <int kColumns>
Status look(const TopkWork& work, const DeviceLimits& limits, Stream stream) {
  const TopkPlan& plan = work.plan;
  Status status = launch(strip_topk_operands_kernel<kColumns>, std::min<int64_t>(plan.tiles * kTileQueries, 1 << 14), 1,
                         32 * kOperandWarps, 0, stream, work);
  if (status != Status::kOk) return status;
  if constexpr (kColumns > 1) status = screen<kColumns, 1>(work, stream);
  if constexpr (kColumns == 1)
    status = plan.tiles_a_warp == 1 ? screen<1, 1>(work, stream) : screen<1, 8>(work, stream);
  if (status == Status::kOk)
    status = launch(strip_topk_select_kernel, query_blocks(work.p), 1, kSelectThreads, 0, stream, work);
  if (status != Status::kOk) return status;
  return launch(strip_topk_rescore_kernel<kColumns>, rescore_blocks(plan, work.p, limits), 1, 32 * kExactWarps,
                8 * kExactWarps * exact_doubles(kColumns, true), stream, work);
}

}  // namespace

bool strip_topk_fits(const StripBankView& bank, const DeviceLimits& limits) {
  StripTopkParams p{};
  p.bank = bank;
  p.batch = p.k = p.padded_width = 1;
  return sizes_fit(p) && strip_topk_plan(p, limits).form != TopkForm::kNone;
}

int64_t strip_topk_list_bytes(int64_t k) { return list_length(k) * int64_t{sizeof(Kept)}; }

int64_t strip_topk_workspace(const StripTopkParams& p, const DeviceLimits& limits) {
  if (!sizes_fit(p) || p.batch == 0) return 0;
  TopkWork work{};
  work.p = p;
  work.plan = strip_topk_plan(p, limits);
  return work.plan.form == TopkForm::kNone ? 0 : carve(work, nullptr);
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
  if (work.plan.form == TopkForm::kNone) return Status::kBadSize;
  carve(work, p.workspace);

  StripScoreParams queries{};
  queries.bank = p.bank, queries.query = p.query, queries.width = p.width;
  queries.batch = p.batch, queries.padded_width = p.padded_width;
  Status status = fill_bytes(work.proven, 0, (work.plan.tiles * kTileQueries + 1) * int64_t{sizeof(uint32_t)}, stream);
  if (status == Status::kOk) status = launch_query_energies(queries, work.energy, stream);
  if (status == Status::kOk) status = launch(strip_topk_order_kernel, 1, 1, kOrderThreads, 0, stream, work);
  if (status == Status::kOk && p.group != nullptr)
    status = launch(strip_topk_runs_kernel, std::min<int64_t>((p.bank.count + kRunThreads - 1) / kRunThreads, 1 << 12),
                    1, kRunThreads, 0, stream, work);
  if (status != Status::kOk) return status;
  switch (p.bank.columns) {
    case 1: status = look<1>(work, limits, stream); break;
    case 16: status = look<16>(work, limits, stream); break;
    default: status = look<64>(work, limits, stream); break;
  }
  if (status != Status::kOk) return status;
  return launch(strip_topk_answer_kernel, query_blocks(p), 1, kSelectThreads, 0, stream, work);
}

}  // namespace geoloc_fast::cuda
