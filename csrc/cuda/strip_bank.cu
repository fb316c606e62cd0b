// SPDX-License-Identifier: Apache-2.0
#include "cuda/device_guard.h"
#include "cuda/strip_bank.cuh"

namespace geoloc_fast::cuda {
namespace {

bool sizes_fit(const StripBankView& view) {
  return view.columns >= 1 && view.columns <= kMaxStripColumns && view.values >= 1;
}

int64_t global_doubles(int64_t columns, bool fixed) { return fixed ? 0 : exact_doubles(columns, false); }
int64_t space_bytes(int64_t items, int64_t columns, bool fixed) {
  const int64_t doubles = global_doubles(columns, fixed);
  return 8 * kExactWarps * doubles * exact_blocks(items, doubles);
}
int64_t shared_bytes(int64_t columns, bool fixed) { return fixed ? 8 * kExactWarps * exact_doubles(columns, true) : 0; }
int64_t energy_bytes(int64_t batch) { return (8 * batch + 63) / 64 * 64; }

// kernel<columns> for the written-out lengths, kernel<0> for the others.
template <template <int> class Kernel, typename... Arguments>
Status launch_for(int64_t items, int64_t columns, Stream stream, const Arguments&... arguments) {
  const bool fixed = has_fixed_transform(columns);
  const int64_t blocks = exact_blocks(items, global_doubles(columns, fixed));
  auto run = [&](auto kernel) {
    return launch(kernel, blocks, 1, 32 * kExactWarps, shared_bytes(columns, fixed), stream, arguments...);
  };
  switch (columns) {
    case 1: return run(Kernel<1>::kernel());
    case 16: return run(Kernel<16>::kernel());
    case 64: return run(Kernel<64>::kernel());
    default: return run(Kernel<0>::kernel());
  }
}

template <int kColumns>
struct Unpack {
  static constexpr auto kernel() { return &strip_unpack_kernel<kColumns>; }
};
template <int kColumns>
struct Score {
  static constexpr auto kernel() { return &strip_score_kernel<kColumns>; }
};

}  // namespace

Status launch_query_energies(const StripScoreParams& p, double* energy, Stream stream) {
  return launch(strip_query_kernel, exact_blocks(p.batch, 0), 1, 32 * kExactWarps, 0, stream, p, energy);
}

int64_t strip_pack_workspace(const StripBankView& view) {
  return space_bytes((view.count + kStripLanes - 1) / kStripLanes * kStripLanes, view.columns, false);
}

Status strip_pack(const StripBankView& view, uint8_t* blocks, const float* strips, const double* circle,
                  void* workspace, int device, void* stream) {
  if (!sizes_fit(view)) return Status::kBadSize;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const int64_t rows = (view.count + kStripLanes - 1) / kStripLanes * kStripLanes;
  return launch(strip_pack_kernel, exact_blocks(rows, global_doubles(view.columns, false)), 1, 32 * kExactWarps, 0,
                static_cast<Stream>(stream), view, blocks, strips, circle, static_cast<double*>(workspace));
}

int64_t strip_unpack_workspace(const StripBankView& view, int64_t n) {
  return space_bytes(n, view.columns, has_fixed_transform(view.columns));
}

Status strip_unpack(const StripBankView& view, const int64_t* index, int64_t n, float* out, const double* circle,
                    void* workspace, int device, void* stream) {
  if (!sizes_fit(view)) return Status::kBadSize;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  return launch_for<Unpack>(n, view.columns, static_cast<Stream>(stream), view, index, n, out, circle,
                            static_cast<double*>(workspace));
}

int64_t strip_score_workspace(const StripBankView& bank, int64_t batch, int64_t n) {
  return energy_bytes(batch) + space_bytes(batch * n, bank.columns, has_fixed_transform(bank.columns));
}

Status strip_score(const StripScoreParams& p, int device, void* stream_pointer) {
  if (!sizes_fit(p.bank) || p.padded_width < 1 || p.padded_width > p.bank.columns) return Status::kBadSize;
  const DeviceGuard guard(device);
  if (!guard.ok()) return Status::kNoDevice;
  const Stream stream = static_cast<Stream>(stream_pointer);
  double* energy = static_cast<double*>(p.workspace);
  double* space = energy + energy_bytes(p.batch) / 8;
  const Status prepared = launch_query_energies(p, energy, stream);
  if (prepared != Status::kOk) return prepared;
  return launch_for<Score>(p.batch * p.n, p.bank.columns, stream, p, static_cast<const double*>(energy), space);
}

}  // namespace geoloc_fast::cuda
