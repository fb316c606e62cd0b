// Packing, unpacking, scoring and searching a bank. Every function has a `_workspace` beside it that says how many
// bytes of memory, aligned to 64, it wants for the same sizes and threads.
// SPDX-License-Identifier: Apache-2.0
#include "bindings/strip_bank_arguments.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {
namespace {

// `run` takes what was read and the threads; rows begin at `first`, and `also` names what else it finds wrong.
template <typename Params, typename Run>
void define(py::module_& m, const char* op, int first, const char* also, Run run) {
  m.def(op, [=](const py::kwargs& named) {
    Arguments a(op, named);
    Params p{};
    read(a, p);
    char plan[kMaxPlanName] = "";
    const Status status = run_cpu(a, [&](int threads) { return run(p, threads, plan); });
    if (status == Status::kBadSize)
      throw std::invalid_argument(std::string(op) + ": expected rows from " + std::to_string(first) + " to " +
                                  std::to_string(p.bank.count - 1) + also);
    check(status, op);
    return std::string(plan);
  });
}

constexpr char kWidths[] = " and widths from 1 to the padded width of query";

}  // namespace

void bind_strip_bank_cpu(py::module_& m) {
  m.attr("max_strip_columns") = kMaxStripColumns;

  m.def("strip_bank_memory", [](const py::kwargs& named) {
    Arguments a("strip_bank_memory", named);
    const int64_t bytes = a.whole("bytes");
    cpu::strip_bank_memory(a.values<uint8_t>("memory", bytes), bytes);
    a.end();
  });
  m.def("strip_pack_workspace", &cpu::strip_pack_workspace);
  define<StripPackParams>(m, "strip_pack", 0, "", [](const StripPackParams& p, int threads, char*) {
    uint8_t* blocks = const_cast<uint8_t*>(p.bank.blocks);
    return cpu::strip_pack(p.bank, blocks, p.strips, p.circle, p.workspace, threads);
  });
  m.def("strip_unpack_workspace", &cpu::strip_unpack_workspace);
  define<StripUnpackParams>(m, "strip_unpack", 0, "", [](const StripUnpackParams& p, int threads, char*) {
    return cpu::strip_unpack(p.bank, p.index, p.n, p.out, p.circle, p.workspace, threads);
  });
  m.def("strip_score_workspace", &cpu::strip_score_workspace);
  define<StripScoreParams>(m, "strip_score", -1, kWidths,
                           [](const StripScoreParams& p, int threads, char*) { return cpu::strip_score(p, threads); });
  m.def("strip_topk_workspace",
        [](const BankSize& size, bool bf16, int64_t batch, int64_t padded_width, int64_t k, int threads) {
          return cpu::strip_topk_workspace(topk_params(size, bf16, batch, padded_width, k), threads);
        });
  define<StripTopkParams>(m, "strip_topk", -1, kWidths, &cpu::strip_topk);
}

}  // namespace geoloc_fast::bindings
