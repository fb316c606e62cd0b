// Packing, unpacking, scoring and searching a bank on a GPU. As in strip_bank_cpu.cpp, but that every address is the
// device's and nothing is looked at before the launch.
// SPDX-License-Identifier: Apache-2.0
#include "bindings/cuda_error.h"
#include "bindings/strip_bank_arguments.h"
#include "geoloc_fast/strip_score.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {
namespace {

using Limits = std::pair<int, int64_t>;

std::string bank_text(const BankSize& size, bool bf16) {
  return std::string("a bank of ") + (bf16 ? "bf16" : "fp32") + " [count, C*H, W] " + shape_text(size);
}

std::string query_text(const BankSize& size, bool bf16, int64_t batch, int64_t padded_width) {
  return "query [B, C*H, Wq] " + shape_text(BankSize{batch, size[1], padded_width}) + ", " + bank_text(size, bf16);
}

}  // namespace

void bind_strip_bank_cuda(py::module_& m) {
  m.attr("max_strip_columns") = kMaxStripColumns;

  m.def("strip_pack_workspace",
        [](const BankSize& size, bool bf16) { return cuda::strip_pack_workspace(view_of(0, size, bf16)); });
  m.def("strip_pack", [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t strips, uintptr_t circle,
                         uintptr_t workspace, int device, uintptr_t stream) {
    Status status;
    {
      py::gil_scoped_release release;
      status = cuda::strip_pack(view_of(blocks, size, bf16), pointer<uint8_t>(blocks), pointer<const float>(strips),
                                pointer<const double>(circle), pointer<void>(workspace), device, pointer<void>(stream));
    }
    check_cuda(status, "strip_pack", bank_text(size, bf16));
  });

  m.def("strip_unpack_workspace", [](const BankSize& size, bool bf16, int64_t n) {
    return cuda::strip_unpack_workspace(view_of(0, size, bf16), n);
  });
  m.def("strip_unpack", [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t index, int64_t n, uintptr_t out,
                           uintptr_t circle, uintptr_t workspace, int device, uintptr_t stream) {
    Status status;
    {
      py::gil_scoped_release release;
      status =
          cuda::strip_unpack(view_of(blocks, size, bf16), pointer<const int64_t>(index), n, pointer<float>(out),
                             pointer<const double>(circle), pointer<void>(workspace), device, pointer<void>(stream));
    }
    check_cuda(status, "strip_unpack", std::to_string(n) + " rows of " + bank_text(size, bf16));
  });

  m.def("strip_score_workspace", [](const BankSize& size, bool bf16, int64_t batch, int64_t n) {
    return cuda::strip_score_workspace(view_of(0, size, bf16), batch, n);
  });
  m.def("strip_score",
        [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t query, uintptr_t width, int64_t batch,
           int64_t padded_width, bool cosine, uintptr_t index, int64_t n, uintptr_t score, uintptr_t shift,
           uintptr_t circle, uintptr_t workspace, int device, uintptr_t stream, bool dot, uintptr_t curve) {
          StripScoreParams p{};
          p.bank = view_of(blocks, size, bf16);
          p.query = pointer<const float>(query), p.width = pointer<const int64_t>(width);
          p.batch = batch, p.padded_width = padded_width, p.cosine = cosine;
          p.index = pointer<const int64_t>(index), p.n = n;
          p.score = pointer<float>(score), p.shift = pointer<int64_t>(shift);
          p.dot = dot, p.curve = pointer<float>(curve);
          p.circle = pointer<const double>(circle), p.workspace = pointer<void>(workspace);
          Status status;
          {
            py::gil_scoped_release release;
            status = cuda::strip_score(p, device, pointer<void>(stream));
          }
          check_cuda(status, "strip_score", query_text(size, bf16, batch, padded_width));
        });

  // (multiprocessors, shared memory of a block), as strip_topk takes them.
  m.def("device_limits", [](int device) {
    int multiprocessors = 0, shared = 0;
    if (cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
      check_cuda(Status::kNoDevice, "device_limits", "device " + std::to_string(device));
    return Limits{multiprocessors, shared};
  });
  m.def("strip_topk_fits", [](const BankSize& size, bool bf16, const Limits& limits) {
    return cuda::strip_topk_fits(view_of(0, size, bf16), {limits.first, limits.second});
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
  m.def("strip_topk", [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t query, uintptr_t width,
                         int64_t batch, int64_t padded_width, bool cosine, int64_t k, uintptr_t alive, uintptr_t score,
                         uintptr_t index, uintptr_t shift, uintptr_t circle, uintptr_t workspace, const Limits& limits,
                         int device, uintptr_t stream, bool dot, uintptr_t group) {
    StripTopkParams p = topk_params(size, bf16, batch, padded_width, k);
    p.bank = view_of(blocks, size, bf16);
    p.query = pointer<const float>(query), p.width = pointer<const int64_t>(width), p.cosine = cosine;
    p.alive = pointer<const bool>(alive), p.dot = dot, p.group = pointer<const int64_t>(group);
    p.score = pointer<float>(score), p.index = pointer<int64_t>(index), p.shift = pointer<int64_t>(shift);
    p.circle = pointer<const double>(circle), p.workspace = pointer<void>(workspace);
    char plan[kMaxPlanName] = "";
    Status status;
    {
      py::gil_scoped_release release;
      status = cuda::strip_topk(p, {limits.first, limits.second}, device, pointer<void>(stream), plan);
    }
    check_cuda(status, "strip_topk",
               query_text(size, bf16, batch, padded_width) + ", k " + std::to_string(k) + ", plan " + plan);
    return std::string(plan);
  });
}

}  // namespace geoloc_fast::bindings
