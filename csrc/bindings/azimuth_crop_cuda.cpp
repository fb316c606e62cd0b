// SPDX-License-Identifier: Apache-2.0
#include "bindings/azimuth_arguments.h"
#include "bindings/define_cuda.h"

namespace geoloc_fast::bindings {

void bind_azimuth_crop_cuda(pybind11::module_& m) {
  m.def("azimuth_crop_workspace", &cuda::azimuth_crop_workspace);
  m.def("azimuth_crop_shared_bytes", [](const Sizes& query, const Sizes& strips) {
    return cuda::azimuth_crop_shared_bytes(query[1] * query[2], query[3], strips[3]);
  });
  define_cuda<AzimuthCropParams>(m, "azimuth_crop", &cuda::azimuth_crop);
  define_cuda<AzimuthCropBackwardParams>(m, "azimuth_crop_backward", &cuda::azimuth_crop_backward);
}

}  // namespace geoloc_fast::bindings
