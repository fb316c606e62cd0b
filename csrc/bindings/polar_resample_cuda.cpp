// SPDX-License-Identifier: Apache-2.0
#include "bindings/define_cuda.h"
#include "bindings/polar_resample_arguments.h"

namespace geoloc_fast::bindings {

void bind_polar_resample_cuda(pybind11::module_& m) {
  define_cuda<PolarResampleParams>(m, "polar_resample", &cuda::polar_resample);
  define_cuda<PolarResampleBackwardParams>(m, "polar_resample_backward", &cuda::polar_resample_backward);
}

}  // namespace geoloc_fast::bindings
