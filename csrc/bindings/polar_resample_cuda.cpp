// SPDX-License-Identifier: Apache-2.0
#include "bindings/cuda_error.h"
#include "bindings/polar_resample_arguments.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

void bind_polar_resample_cuda(py::module_& m) {
  m.def("polar_resample",
        [](uintptr_t images, int images_dtype, const Sizes& size, const Sizes& stride, uintptr_t out, int out_dtype,
           int64_t out_rows, int64_t out_cols, uintptr_t center, uintptr_t max_radius, uintptr_t heading_deg,
           double column0_deg, bool outer_radius, bool replicate_border, const std::vector<double>& mean,
           const std::vector<double>& std, int device, uintptr_t stream) {
          const PolarResampleParams params =
              polar_resample_params(images, images_dtype, size, stride, out, out_dtype, out_rows, out_cols, center,
                                    max_radius, heading_deg, column0_deg, outer_radius, replicate_border, mean, std);
          Status status;
          {
            py::gil_scoped_release release;
            status = cuda::polar_resample(params, device, reinterpret_cast<void*>(stream));
          }
          check_cuda(status, "polar_resample", "images " + shape_text(size));
        });
  m.def("polar_resample_backward",
        [](uintptr_t grad_out, int grad_out_dtype, const Sizes& images_size, uintptr_t grad_images, int64_t out_rows,
           int64_t out_cols, uintptr_t center, uintptr_t max_radius, uintptr_t heading_deg, double column0_deg,
           bool outer_radius, bool replicate_border, const std::vector<double>& std, int device, uintptr_t stream) {
          const PolarResampleBackwardParams params = polar_resample_backward_params(
              grad_out, grad_out_dtype, images_size, grad_images, out_rows, out_cols, center, max_radius, heading_deg,
              column0_deg, outer_radius, replicate_border, std);
          Status status;
          {
            py::gil_scoped_release release;
            status = cuda::polar_resample_backward(params, device, reinterpret_cast<void*>(stream));
          }
          check_cuda(status, "polar_resample_backward", "images " + shape_text(images_size));
        });
}

}  // namespace geoloc_fast::bindings
