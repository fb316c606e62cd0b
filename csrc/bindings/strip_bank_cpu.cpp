// Packing, unpacking, scoring and searching a bank. Every function has a `_workspace` beside it that says how many
// bytes of memory, aligned to 64, it wants for the same sizes and threads.
// SPDX-License-Identifier: Apache-2.0
#include "bindings/strip_bank_arguments.h"
#include "geoloc_fast/strip_score.h"
#include "geoloc_fast/strip_topk.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace geoloc_fast::bindings {
namespace {

void check_search(Status status, const char* op, int64_t count) {
  if (status == Status::kBadSize)
    throw std::invalid_argument(std::string(op) + ": expected rows from -1 to " + std::to_string(count - 1) +
                                " and widths from 1 to the padded width of query");
  check(status, op);
}

}  // namespace

void bind_strip_bank_cpu(py::module_& m) {
  m.attr("max_strip_columns") = kMaxStripColumns;

  m.def("strip_bank_memory",
        [](uintptr_t memory, int64_t bytes) { cpu::strip_bank_memory(pointer<void>(memory), bytes); });
  m.def("strip_pack_workspace", &cpu::strip_pack_workspace);
  m.def("strip_pack", [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t strips, uintptr_t circle,
                         uintptr_t workspace, int threads) {
    const StripBankView view = view_of(blocks, size, bf16);
    Status status;
    {
      py::gil_scoped_release release;
      status = cpu::strip_pack(view, pointer<uint8_t>(blocks), pointer<const float>(strips),
                               pointer<const double>(circle), pointer<void>(workspace), threads);
    }
    check(status, "strip_pack");
  });

  m.def("strip_unpack_workspace", &cpu::strip_unpack_workspace);
  m.def("strip_unpack", [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t index, int64_t n, uintptr_t out,
                           uintptr_t circle, uintptr_t workspace, int threads) {
    const StripBankView view = view_of(blocks, size, bf16);
    Status status;
    {
      py::gil_scoped_release release;
      status = cpu::strip_unpack(view, pointer<const int64_t>(index), n, pointer<float>(out),
                                 pointer<const double>(circle), pointer<void>(workspace), threads);
    }
    if (status == Status::kBadSize)
      throw std::invalid_argument("strip_unpack: expected rows from 0 to " + std::to_string(size[0] - 1));
    check(status, "strip_unpack");
  });

  m.def("strip_score_workspace", &cpu::strip_score_workspace);
  auto score = [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t query, uintptr_t width, int64_t batch,
                  int64_t padded_width, bool cosine, uintptr_t index, int64_t n, uintptr_t score, uintptr_t shift,
                  uintptr_t circle, uintptr_t workspace, int threads, bool dot, uintptr_t curve) {
    StripScoreParams p{};
    p.bank = view_of(blocks, size, bf16);
    p.query = pointer<const float>(query), p.width = pointer<const int64_t>(width);
    p.batch = batch, p.padded_width = padded_width, p.cosine = cosine, p.dot = dot;
    p.index = pointer<const int64_t>(index), p.n = n;
    p.score = pointer<float>(score), p.shift = pointer<int64_t>(shift), p.curve = pointer<float>(curve);
    p.circle = pointer<const double>(circle), p.workspace = pointer<void>(workspace);
    Status status;
    {
      py::gil_scoped_release release;
      status = cpu::strip_score(p, threads);
    }
    check_search(status, "strip_score", size[0]);
  };
  m.def("strip_score", score, "blocks"_a, "size"_a, "bf16"_a, "query"_a, "width"_a, "batch"_a, "padded_width"_a,
        "cosine"_a, "index"_a, "n"_a, "score"_a, "shift"_a, "circle"_a, "workspace"_a, "threads"_a, "dot"_a = false,
        "curve"_a = 0);

  m.def("strip_topk_workspace",
        [](const BankSize& size, bool bf16, int64_t batch, int64_t padded_width, int64_t k, int threads) {
          return cpu::strip_topk_workspace(topk_params(size, bf16, batch, padded_width, k), threads);
        });
  auto topk = [](uintptr_t blocks, const BankSize& size, bool bf16, uintptr_t query, uintptr_t width, int64_t batch,
                 int64_t padded_width, bool cosine, int64_t k, uintptr_t alive, uintptr_t score, uintptr_t index,
                 uintptr_t shift, uintptr_t circle, uintptr_t workspace, int threads, bool dot, uintptr_t group) {
    StripTopkParams p = topk_params(size, bf16, batch, padded_width, k);
    p.bank = view_of(blocks, size, bf16);
    p.query = pointer<const float>(query), p.width = pointer<const int64_t>(width);
    p.cosine = cosine, p.dot = dot;
    p.alive = pointer<const bool>(alive), p.group = pointer<const int64_t>(group);
    p.score = pointer<float>(score), p.index = pointer<int64_t>(index), p.shift = pointer<int64_t>(shift);
    p.circle = pointer<const double>(circle), p.workspace = pointer<void>(workspace);
    char plan[kMaxPlanName] = "";
    Status status;
    {
      py::gil_scoped_release release;
      status = cpu::strip_topk(p, threads, plan);
    }
    check_search(status, "strip_topk", size[0]);
    return std::string(plan);
  };
  m.def("strip_topk", topk, "blocks"_a, "size"_a, "bf16"_a, "query"_a, "width"_a, "batch"_a, "padded_width"_a,
        "cosine"_a, "k"_a, "alive"_a, "score"_a, "index"_a, "shift"_a, "circle"_a, "workspace"_a, "threads"_a,
        "dot"_a = false, "group"_a = 0);
}

}  // namespace geoloc_fast::bindings
