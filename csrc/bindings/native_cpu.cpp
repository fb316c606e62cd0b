// _native_cpu: the CPU kernels, taking tensors by name and no copy of them. Memory belongs to the caller.
// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {
namespace {

// {name: reason it cannot run here, empty if it can}, narrowest first.
py::dict isas() {
  py::dict result;
  for (int isa = 0; isa < cpu::kIsaCount; ++isa)
    result[cpu::isa_name(static_cast<cpu::Isa>(isa))] = cpu::isa_problem(static_cast<cpu::Isa>(isa));
  return result;
}

void set_isa(const std::string& name) {
  std::string names;
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const cpu::Isa isa = static_cast<cpu::Isa>(i);
    if (name == cpu::isa_name(isa)) {
      const std::string problem = cpu::isa_problem(isa);
      if (!problem.empty()) throw std::runtime_error("instruction set '" + name + "' cannot run here: " + problem);
      return cpu::set_current_isa(isa);
    }
    names += (i ? ", " : "") + std::string(cpu::isa_name(isa));
  }
  throw std::invalid_argument("instruction set: expected one of " + names + ", got '" + name + "'");
}

}  // namespace

PYBIND11_MODULE(_native_cpu, m) {
  m.doc() = "CPU kernels of geoloc_fast. Called by geoloc_fast.ops; not a public interface.";
  m.attr("version") = GEOLOC_FAST_VERSION;
  m.attr("compiler") = GEOLOC_FAST_COMPILER;
  m.attr("cuda_build") = GEOLOC_FAST_CUDA_STATE;
  m.attr("max_channels") = kMaxChannels;
  m.def("isas", &isas);
  m.def("isa", [] { return cpu::isa_name(cpu::current_isa()); });
  m.def("set_isa", &set_isa);

  bind_azimuth_crop_cpu(m);
  bind_azimuth_match_cpu(m);
  bind_gumbel_noise_cpu(m);
  bind_polar_resample_cpu(m);
  bind_strip_bank_cpu(m);
}

}  // namespace geoloc_fast::bindings
