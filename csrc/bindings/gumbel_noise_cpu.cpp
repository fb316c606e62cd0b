// SPDX-License-Identifier: Apache-2.0
#include "bindings/arguments.h"
#include "geoloc_fast/gumbel_noise.h"

namespace geoloc_fast::bindings {

void bind_gumbel_noise_cpu(pybind11::module_& m) {
  m.def("gumbel_noise", [](const pybind11::kwargs& named) {
    Arguments a("gumbel_noise", named);
    const uint64_t seed = static_cast<uint64_t>(*a.values<const int64_t>("seed", 1));
    const int64_t count = a.whole("count");
    float* out = a.values<float>("out", count);
    run_cpu(a, [&](int threads) { return cpu::gumbel_noise(seed, out, count, threads), Status::kOk; });
  });
}

}  // namespace geoloc_fast::bindings
