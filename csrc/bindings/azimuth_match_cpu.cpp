// SPDX-License-Identifier: Apache-2.0
#include "bindings/azimuth_arguments.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

void bind_azimuth_match_cpu(py::module_& m) {
  // (plan, bytes of work space) for a call of these sizes; plan -1 leaves the choice to the cost model.
  m.def("azimuth_match_plan", [](const Sizes& query, const Sizes& strips, bool mixed_widths, int select, bool slope,
                                 bool backward, int plan, int threads) {
    const AzimuthMatchSize size = match_size(query, strips, mixed_widths, select, slope, backward);
    const AzimuthPlan chosen = plan < 0 ? cpu::azimuth_match_plan(size) : static_cast<AzimuthPlan>(plan);
    return std::make_pair(static_cast<int>(chosen), cpu::azimuth_match_workspace(size, chosen, threads));
  });
  define_cpu<AzimuthMatchParams>(m, "azimuth_match", &cpu::azimuth_match);
  define_cpu<AzimuthMatchBackwardParams>(m, "azimuth_match_backward", &cpu::azimuth_match_backward);
}

}  // namespace geoloc_fast::bindings
