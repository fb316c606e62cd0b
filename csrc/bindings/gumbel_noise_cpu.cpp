// SPDX-License-Identifier: Apache-2.0
#include "bindings/bindings.h"
#include "geoloc_fast/gumbel_noise.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

void bind_gumbel_noise_cpu(py::module_& m) {
  m.def("gumbel_noise", [](int64_t seed, uintptr_t out, int64_t count, int threads) {
    py::gil_scoped_release release;
    cpu::gumbel_noise(static_cast<uint64_t>(seed), reinterpret_cast<float*>(out), count, threads);
  });
}

}  // namespace geoloc_fast::bindings
