// SPDX-License-Identifier: Apache-2.0
#include "cuda/azimuth_match.cuh"
#include "cuda/azimuth_match_backward.cuh"
#include "cuda/azimuth_match_heuristics.h"
#include "cuda/device_guard.h"
#include "cuda/strip_facts.h"

namespace geoloc_fast::cuda {
namespace {

// Launches one after the other, until one fails.
class Launches {
 public:
  explicit Launches(Stream stream) : stream_(stream) {}
  template <typename... Params, typename... Arguments>
  void operator()(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int threads, int64_t shared_bytes,
                  const Arguments&... arguments) {
    if (status_ == Status::kOk)
      status_ = launch(kernel, blocks_x, blocks_y, threads, shared_bytes, stream_, static_cast<Params>(arguments)...);
  }
  void facts(const StripTensor& t, const int64_t* widths, const ItemFacts& of) {
    if (status_ == Status::kOk) status_ = launch_facts(t, widths, of, stream_);
  }
  Status status() const { return status_; }

 private:
  Stream stream_;
  Status status_ = Status::kOk;
};

template <int N, bool kByItem>
void launch_spectra(Launches& run, const StripTensor& t, const int64_t* widths, const ItemFacts& facts, int64_t terms,
                    float* out) {
  const int64_t rows = ceil_div(kByItem ? t.items : t.channels * t.height, kTile) * terms;
  run(azimuth_spectra_kernel<N, kByItem>, ceil_div(rows, kItemThreads / 32), 1, kItemThreads, 0, t, widths, facts,
      terms, rows, out);
}

void launch_columns(Launches& run, const StripTensor& t, const int64_t* widths, const ItemFacts& facts, int64_t count,
                    int64_t padded, float* out) {
  const int64_t rows = ceil_div(t.items, kTile) * count * padded;
  run(azimuth_columns_kernel, ceil_div(rows, kItemThreads / 32), 1, kItemThreads, 0, t, widths, facts, count, padded,
      rows, out);
}

template <int W>
void launch_match(Launches& run, const MatchArguments& it, const MatchLaunch& how) {
  const int64_t at = how.global ? -1 : how.overlay ? 0 : (how.shared_bytes - how.products_bytes) / 4;
  if (it.p.slope != nullptr)
    run(azimuth_match_kernel<W, true>, how.blocks, 1, how.warps * 32, how.shared_bytes, it, at);
  else
    run(azimuth_match_kernel<W, false>, how.blocks, 1, how.warps * 32, how.shared_bytes, it, at);
}

template <int W>
void launch_forward(Launches& run, const MatchArguments& it, const MatchLaunch& how) {
  const AzimuthMatchParams& p = it.p;
  if constexpr (W > 0) {
    launch_spectra<W, true>(run, p.query, p.query_width, it.space.query, it.padded, it.space.query_tiles);
    launch_spectra<W, true>(run, p.strips, nullptr, it.space.strips, it.padded, it.space.strip_tiles);
  } else {
    launch_columns(run, p.query, p.query_width, it.space.query, p.query.columns, it.padded, it.space.query_tiles);
    launch_columns(run, p.strips, nullptr, it.space.strips, p.strips.columns + p.query.columns - 1, it.padded,
                   it.space.strip_tiles);
  }
  launch_match<W>(run, it, how);
}

// The gradient of queries or of strips from products per frequency.
template <int N, bool kOfQuery>
void launch_gradient(Launches& run, const GradientArguments& it, const AzimuthMatchSize& size) {
  const AzimuthMatchBackwardParams& p = it.p;
  const GradientLaunch how = gradient_launch(size, kOfQuery);
  float* others = kOfQuery ? it.space.strip_values : it.space.query_values;
  if constexpr (kOfQuery)
    launch_spectra<N, false>(run, p.strips, nullptr, it.space.strips, how.terms, others);
  else
    launch_spectra<N, false>(run, p.query, p.query_width, it.space.query, how.terms, others);
  run(azimuth_weights_kernel<N, kOfQuery>, how.row_tiles * (how.terms / kTermAlign), 1, kGradientThreads, 0, it,
      how.terms, how.terms / kTermAlign);
  const SumArguments sums{it.space.weights, others,     it.space.sums,      N / 2, how.row_tiles, how.value_tiles,
                          how.terms,        how.splits, how.terms_per_split};
  run(azimuth_sums_kernel<kOfQuery>, ceil_div(N / 2 * how.row_tiles * how.value_tiles * how.splits, kSumWarps), 1,
      kSumWarps * 32, kSumWarps * stage_floats(2, 2, 8) * 4, sums);
  const int64_t items = kOfQuery ? p.query.items : p.strips.items;
  run(azimuth_finish_kernel<N, kOfQuery>, ceil_div(items * how.value_tiles * kTile, kGradientThreads), 1,
      kGradientThreads, 0, it, how);
}

template <int N>
void launch_gradients(Launches& run, const GradientArguments& it, const AzimuthMatchSize& size) {
  launch_gradient<N, true>(run, it, size);
  launch_gradient<N, false>(run, it, size);
}

template <bool kOfQuery>
void launch_scatter(Launches& run, const GradientArguments& it) {
  const StripTensor& t = kOfQuery ? it.p.query : it.p.strips;
  const int64_t weights = it.p.slope != nullptr ? it.p.strips.columns : 1, at_once = max_of(1, 2048 / weights);
  const int64_t pieces = ceil_div(t.channels * t.height * t.columns, kScatterThreads);
  run(azimuth_scatter_kernel<kOfQuery>, t.items * pieces, 1, kScatterThreads, at_once * (weights + 2) * 4, it, at_once,
      pieces);
}

}  // namespace

AzimuthPlan azimuth_match_plan(const AzimuthMatchSize& size) { return choose_match_plan(size); }

int64_t azimuth_match_workspace(const AzimuthMatchSize& size, AzimuthPlan plan) {
  return size.backward ? gradient_space(size, plan, nullptr).bytes : match_space(size, plan, nullptr).bytes;
}

int64_t azimuth_match_shared_bytes(const AzimuthMatchSize& size, AzimuthPlan plan) {
  return match_launch(size, plan).shared_bytes;
}

Status azimuth_match(const AzimuthMatchParams& p, int device, void* stream) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  if (!sound(p.query, p.strips)) return Status::kBadSize;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const int64_t batch = p.query.items, references = p.strips.items, columns = p.strips.columns;
  if (batch == 0 || references == 0) return Status::kOk;
  const AzimuthMatchSize size{batch,
                              references,
                              p.query.channels * p.query.height,
                              p.query.columns,
                              columns,
                              p.query_width != nullptr,
                              p.select,
                              p.slope != nullptr,
                              false};
  const MatchLaunch how = match_launch(size, p.plan);
  MatchArguments it{};
  it.p = p;
  it.space = match_space(size, p.plan, p.workspace);
  it.terms = static_cast<int32_t>(how.terms);
  it.padded = static_cast<int32_t>(padded_values(size.values));
  const bool spectral = p.plan == AzimuthPlan::kSpectral;
  it.query_tile = int64_t{it.padded} * kTile * (spectral ? columns : size.query_columns);
  it.strip_tile = int64_t{it.padded} * kTile * (spectral ? columns : columns + size.query_columns - 1);
  it.blocks_of_strips = ceil_div(references, how.strips);
  it.tiles = how.tiles;
  it.error = correlation_error(p.plan, how.terms, columns);
  it.overlay = how.overlay;
  Launches run(static_cast<Stream>(stream));
  run.facts(p.query, p.query_width, it.space.query);
  run.facts(p.strips, nullptr, it.space.strips);
  if (p.slope != nullptr) {
    const int64_t at_once = min_of(kGramValues, (48 << 10) / (4 * columns));
    run(azimuth_gram_kernel, references, 1, kGramThreads, at_once * columns * 4, p.strips, it.space.strips, at_once,
        it.space.gram);
  }
  if (!spectral) {
    launch_forward<0>(run, it, how);
    return run.status();
  }
  switch (columns) {
    case 4: launch_forward<4>(run, it, how); break;
    case 8: launch_forward<8>(run, it, how); break;
    case 16: launch_forward<16>(run, it, how); break;
    case 32: launch_forward<32>(run, it, how); break;
    case 64: launch_forward<64>(run, it, how); break;
    default: return Status::kBadSize;
  }
  return run.status();
}

Status azimuth_match_backward(const AzimuthMatchBackwardParams& p, int device, void* stream) {
  if (!known(p.query.dtype) || !known(p.strips.dtype)) return Status::kBadDType;
  if (!sound(p.query, p.strips)) return Status::kBadSize;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const int64_t batch = p.query.items, references = p.strips.items, columns = p.strips.columns;
  const AzimuthMatchSize size{batch,           references, p.query.channels * p.query.height,
                              p.query.columns, columns,    p.query_width != nullptr,
                              p.select,        false,      true};
  if (batch == 0 || references == 0) {
    const int64_t values = size.values;
    Status status = fill_bytes(p.grad_query, 0, batch * values * p.query.columns * 4, static_cast<Stream>(stream));
    if (status == Status::kOk)
      status = fill_bytes(p.grad_strips, 0, references * values * columns * 4, static_cast<Stream>(stream));
    if (status == Status::kOk && p.grad_scale != nullptr)
      status = fill_bytes(p.grad_scale, 0, sizeof(double), static_cast<Stream>(stream));
    return status;
  }
  Launches run(static_cast<Stream>(stream));
  GradientArguments it{};
  it.p = p;
  it.space = gradient_space(size, p.plan, p.workspace);
  it.splits = share_splits(size);
  it.queries_per_split = ceil_div(batch, it.splits);
  run.facts(p.query, p.query_width, it.space.query);
  run.facts(p.strips, nullptr, it.space.strips);
  run(azimuth_weigh_kernel, batch, 1, kGradientThreads, 0, it);
  if (p.grad_scale != nullptr) run(azimuth_scale_kernel, 1, 1, 32, 0, it.space.scale_sum, batch, p.grad_scale);
  run(azimuth_shares_kernel, ceil_div(references, kTile), it.splits, kGradientThreads, 0, it);
  if (p.plan != AzimuthPlan::kSpectral) {
    launch_scatter<true>(run, it);
    launch_scatter<false>(run, it);
    return run.status();
  }
  switch (columns) {
    case 4: launch_gradients<4>(run, it, size); break;
    case 8: launch_gradients<8>(run, it, size); break;
    case 16: launch_gradients<16>(run, it, size); break;
    case 32: launch_gradients<32>(run, it, size); break;
    case 64: launch_gradients<64>(run, it, size); break;
    default: return Status::kBadSize;
  }
  return run.status();
}

}  // namespace geoloc_fast::cuda
