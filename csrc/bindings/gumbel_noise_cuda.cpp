// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "bindings/bindings.h"
#include "geoloc_fast/gumbel_noise.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

void bind_gumbel_noise_cuda(py::module_& m) {
  m.def("gumbel_noise", [](uintptr_t seed, uintptr_t out, int64_t count, int device, uintptr_t stream) {
    Status status;
    {
      py::gil_scoped_release release;
      status = cuda::gumbel_noise(reinterpret_cast<const int64_t*>(seed), reinterpret_cast<float*>(out), count, device,
                                  reinterpret_cast<void*>(stream));
    }
    if (status != Status::kOk)
      check(status, "gumbel_noise", std::to_string(count) + " values: " + cudaGetErrorString(cudaGetLastError()));
  });
}

}  // namespace geoloc_fast::bindings
