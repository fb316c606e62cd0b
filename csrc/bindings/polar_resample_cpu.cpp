// SPDX-License-Identifier: Apache-2.0
#include "bindings/polar_resample_arguments.h"
#include "cpu/isa.h"

namespace geoloc_fast::bindings {
namespace {

template <typename Params>
void define(pybind11::module_& m, const char* op, Status (*kernel)(const Params&, int)) {
  m.def(op, [=](const pybind11::kwargs& named) {
    Arguments a(op, named);
    Params p{};
    read(a, p);
    check(run_cpu(a, [&](int threads) { return kernel(p, threads); }), op);
    // "avx512/rgb8": the instruction set and the path that ran.
    return std::string(cpu::isa_name(cpu::current_isa())) + "/" + cpu::polar_path_name(cpu::polar_path(p));
  });
}

}  // namespace

void bind_polar_resample_cpu(pybind11::module_& m) {
  define<PolarResampleParams>(m, "polar_resample", &cpu::polar_resample);
  define<PolarResampleBackwardParams>(m, "polar_resample_backward", &cpu::polar_resample_backward);
}

}  // namespace geoloc_fast::bindings
