// SPDX-License-Identifier: Apache-2.0
#include "bindings/azimuth_arguments.h"
#include "bindings/define_cuda.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

void bind_azimuth_match_cuda(py::module_& m) {
  m.attr("max_columns") = cuda::kMaxStripColumns;
  // (plan, bytes of work space) for a call of these sizes; plan -1 leaves the choice to the cost model.
  m.def("azimuth_match_plan", [](const Sizes& query, const Sizes& strips, bool mixed_widths, int select, bool slope,
                                 bool backward, int plan) {
    const AzimuthMatchSize size = match_size(query, strips, mixed_widths, select, slope, backward);
    const AzimuthPlan chosen = plan < 0 ? cuda::azimuth_match_plan(size) : static_cast<AzimuthPlan>(plan);
    return std::make_pair(static_cast<int>(chosen), cuda::azimuth_match_workspace(size, chosen));
  });
  m.def("device_shared_bytes", [](int device) {
    int bytes = 0;
    const cudaError_t error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (error != cudaSuccess) throw std::runtime_error(std::string("azimuth_match: ") + cudaGetErrorString(error));
    return bytes;
  });
  m.def("azimuth_match_shared_bytes", [](const Sizes& query, const Sizes& strips) {
    const AzimuthMatchSize size = match_size(query, strips, false, 0, false, false);
    return cuda::azimuth_match_shared_bytes(size, cuda::azimuth_match_plan(size));
  });
  define_cuda<AzimuthMatchParams>(m, "azimuth_match", &cuda::azimuth_match);
  define_cuda<AzimuthMatchBackwardParams>(m, "azimuth_match_backward", &cuda::azimuth_match_backward);
}

}  // namespace geoloc_fast::bindings
