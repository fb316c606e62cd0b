// Packing, unpacking, scoring and searching a bank on a GPU. As in strip_bank_cpu.cpp, but that every address is the
// device's and nothing is looked at before the launch.
// SPDX-License-Identifier: Apache-2.0
#include "bindings/define_cuda.h"
#include "bindings/strip_bank_arguments.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

using Limits = std::pair<int, int64_t>;

static std::string text(const StripBankView& bank) {
  return std::string("a bank of ") + (bank.bf16 ? "bf16" : "fp32") + " [count, C*H, W] " +
         shape_text(BankSize{bank.count, bank.values, bank.columns});
}
static std::string given(const Arguments&, const StripPackParams& p) { return text(p.bank); }
static std::string given(const Arguments&, const StripUnpackParams& p) {
  return std::to_string(p.n) + " rows of " + text(p.bank);
}
template <typename Params>
static std::string given(const Arguments&, const Params& p) {
  return "query [B, C*H, Wq] " + shape_text(BankSize{p.batch, p.bank.values, p.padded_width}) + ", " + text(p.bank);
}

void bind_strip_bank_cuda(py::module_& m) {
  m.attr("max_strip_columns") = kMaxStripColumns;

  m.def("strip_pack_workspace",
        [](const BankSize& size, bool bf16) { return cuda::strip_pack_workspace(view_of(size, bf16)); });
  define_cuda<StripPackParams>(m, "strip_pack", [](const StripPackParams& p, int device, void* stream) {
    uint8_t* blocks = const_cast<uint8_t*>(p.bank.blocks);
    return cuda::strip_pack(p.bank, blocks, p.strips, p.circle, p.workspace, device, stream);
  });
  m.def("strip_unpack_workspace", [](const BankSize& size, bool bf16, int64_t n) {
    return cuda::strip_unpack_workspace(view_of(size, bf16), n);
  });
  define_cuda<StripUnpackParams>(m, "strip_unpack", [](const StripUnpackParams& p, int device, void* stream) {
    return cuda::strip_unpack(p.bank, p.index, p.n, p.out, p.circle, p.workspace, device, stream);
  });
  m.def("strip_score_workspace", [](const BankSize& size, bool bf16, int64_t batch, int64_t n) {
    return cuda::strip_score_workspace(view_of(size, bf16), batch, n);
  });
  define_cuda<StripScoreParams>(m, "strip_score", &cuda::strip_score);

  // (multiprocessors, shared memory of a block), as strip_topk takes them.
  m.def("device_limits", [](int device) {
    int multiprocessors = 0, shared = 0;
    if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
      check_cuda(Status::kNoDevice, "device_limits", "device " + std::to_string(device));
    return Limits{multiprocessors, shared};
  });
  m.def("strip_topk_fits", [](const BankSize& size, bool bf16, const Limits& limits) {
    return cuda::strip_topk_fits(view_of(size, bf16), {limits.first, limits.second});
  });
  m.def("strip_topk_list_bytes", &cuda::strip_topk_list_bytes);
  // `has_width` and `limits` as in the call this is for.
  m.def("strip_topk_workspace", [](const BankSize& size, bool bf16, int64_t batch, int64_t padded_width, bool has_width,
                                   int64_t k, const Limits& limits) {
    StripTopkParams p = topk_params(size, bf16, batch, padded_width, k);
    const int64_t some_width = 1;
    p.width = has_width ? &some_width : nullptr;
    return cuda::strip_topk_workspace(p, {limits.first, limits.second});
  });
  m.def("strip_topk", [](const py::kwargs& named) {
    Arguments a("strip_topk", named);
    StripTopkParams p{};
    read(a, p);
    const auto [multiprocessors, shared] = a.sizes<2>("limits");
    const cuda::DeviceLimits limits{static_cast<int>(multiprocessors), shared};
    char plan[kMaxPlanName] = "";
    const Status status =
        run_cuda(a, [&](int device, void* stream) { return cuda::strip_topk(p, limits, device, stream, plan); });
    check_cuda(status, a.op, given(a, p) + ", k " + std::to_string(p.k) + ", plan " + plan);
    return std::string(plan);
  });
}

}  // namespace geoloc_fast::bindings
