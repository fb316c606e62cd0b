// SPDX-License-Identifier: Apache-2.0
#include "bindings/azimuth_arguments.h"

namespace geoloc_fast::bindings {

void bind_azimuth_crop_cpu(pybind11::module_& m) {
  m.def("azimuth_crop_workspace", &cpu::azimuth_crop_workspace);
  define_cpu<AzimuthCropParams>(m, "azimuth_crop", &cpu::azimuth_crop);
  define_cpu<AzimuthCropBackwardParams>(m, "azimuth_crop_backward", &cpu::azimuth_crop_backward);
}

}  // namespace geoloc_fast::bindings
