// SPDX-License-Identifier: Apache-2.0
#include "bindings/define_cuda.h"
#include "geoloc_fast/gumbel_noise.h"

namespace geoloc_fast::bindings {

void bind_gumbel_noise_cuda(pybind11::module_& m) {
  m.def("gumbel_noise", [](const pybind11::kwargs& named) {
    Arguments a("gumbel_noise", named);
    const int64_t* seed = a.values<const int64_t>("seed", 1);
    const int64_t count = a.whole("count");
    float* out = a.values<float>("out", count);
    const Status status =
        run_cuda(a, [&](int device, void* stream) { return cuda::gumbel_noise(seed, out, count, device, stream); });
    check_cuda(status, "gumbel_noise", std::to_string(count) + " values");
  });
}

}  // namespace geoloc_fast::bindings
