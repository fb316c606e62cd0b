// SPDX-License-Identifier: Apache-2.0
#include "bindings/polar_resample_arguments.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {
namespace {

// "avx512/rgb8": the instruction set and the path that ran.
std::string plan_name(cpu::PolarPath path) {
  return std::string(cpu::isa_name(cpu::current_isa())) + "/" + cpu::polar_path_name(path);
}

}  // namespace

void bind_polar_resample_cpu(py::module_& m) {
  m.def("polar_resample", [](uintptr_t images, int images_dtype, const Sizes& size, const Sizes& stride, uintptr_t out,
                             int out_dtype, int64_t out_rows, int64_t out_cols, uintptr_t center, uintptr_t max_radius,
                             uintptr_t heading_deg, double column0_deg, bool outer_radius, bool replicate_border,
                             const std::vector<double>& mean, const std::vector<double>& std, int threads) {
    const PolarResampleParams params =
        polar_resample_params(images, images_dtype, size, stride, out, out_dtype, out_rows, out_cols, center,
                              max_radius, heading_deg, column0_deg, outer_radius, replicate_border, mean, std);
    Status status;
    {
      py::gil_scoped_release release;
      status = cpu::polar_resample(params, threads);
    }
    check(status, "polar_resample");
    return plan_name(cpu::polar_path(params));
  });
  m.def("polar_resample_backward",
        [](uintptr_t grad_out, int grad_out_dtype, const Sizes& images_size, uintptr_t grad_images, int64_t out_rows,
           int64_t out_cols, uintptr_t center, uintptr_t max_radius, uintptr_t heading_deg, double column0_deg,
           bool outer_radius, bool replicate_border, const std::vector<double>& std, int threads) {
          const PolarResampleBackwardParams params = polar_resample_backward_params(
              grad_out, grad_out_dtype, images_size, grad_images, out_rows, out_cols, center, max_radius, heading_deg,
              column0_deg, outer_radius, replicate_border, std);
          Status status;
          {
            py::gil_scoped_release release;
            status = cpu::polar_resample_backward(params, threads);
          }
          check(status, "polar_resample_backward");
          return plan_name(cpu::polar_path(params));
        });
}

}  // namespace geoloc_fast::bindings
