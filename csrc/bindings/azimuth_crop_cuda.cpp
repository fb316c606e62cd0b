// SPDX-License-Identifier: Apache-2.0
#include "bindings/azimuth_cuda_error.h"
#include "geoloc_fast/azimuth_crop.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

void bind_azimuth_crop_cuda(py::module_& m) {
  m.def("azimuth_crop_workspace", &cuda::azimuth_crop_workspace);
  m.def("azimuth_crop_shared_bytes", [](const Sizes& query, const Sizes& strips) {
    return cuda::azimuth_crop_shared_bytes(query[1] * query[2], query[3], strips[3]);
  });
  m.def("azimuth_crop",
        [](uintptr_t query, int query_dtype, const Sizes& query_size, const Sizes& query_stride, uintptr_t strips,
           int strips_dtype, const Sizes& strips_size, const Sizes& strips_stride, uintptr_t query_width, int select,
           uintptr_t scale, double tau, uintptr_t noise, const std::array<int64_t, 2>& noise_stride, uintptr_t crop,
           uintptr_t score, uintptr_t shift, uintptr_t workspace, int device, uintptr_t stream) {
          AzimuthCropParams p{};
          p.query = strip_tensor(query, query_dtype, query_size, query_stride);
          p.strips = strip_tensor(strips, strips_dtype, strips_size, strips_stride);
          p.query_width = pointer<const int64_t>(query_width);
          p.select = static_cast<Selection>(select);
          p.device_scale = pointer<const double>(scale), p.tau = tau;
          p.noise = pointer<const float>(noise);
          p.noise_stride[0] = noise_stride[0], p.noise_stride[1] = noise_stride[1];
          p.crop = pointer<float>(crop);
          p.score = pointer<float>(score);
          p.shift = pointer<int64_t>(shift);
          p.workspace = pointer<void>(workspace);
          Status status;
          {
            py::gil_scoped_release release;
            status = cuda::azimuth_crop(p, device, pointer<void>(stream));
          }
          check_cuda(status, "azimuth_crop", p.query, p.strips);
        });
  m.def("azimuth_crop_backward",
        [](uintptr_t query, int query_dtype, const Sizes& query_size, const Sizes& query_stride, uintptr_t strips,
           int strips_dtype, const Sizes& strips_size, const Sizes& strips_stride, uintptr_t query_width, int select,
           uintptr_t scale, double tau, uintptr_t noise, const std::array<int64_t, 2>& noise_stride,
           uintptr_t grad_crop, uintptr_t grad_score, uintptr_t score, uintptr_t shift, uintptr_t grad_query,
           uintptr_t grad_strips, uintptr_t grad_scale, uintptr_t workspace, int device, uintptr_t stream) {
          AzimuthCropBackwardParams p{};
          p.query = strip_tensor(query, query_dtype, query_size, query_stride);
          p.strips = strip_tensor(strips, strips_dtype, strips_size, strips_stride);
          p.query_width = pointer<const int64_t>(query_width);
          p.select = static_cast<Selection>(select);
          p.device_scale = pointer<const double>(scale), p.tau = tau;
          p.noise = pointer<const float>(noise);
          p.noise_stride[0] = noise_stride[0], p.noise_stride[1] = noise_stride[1];
          p.grad_crop = pointer<const float>(grad_crop);
          p.grad_score = pointer<const float>(grad_score);
          p.score = pointer<const float>(score);
          p.shift = pointer<const int64_t>(shift);
          p.grad_query = pointer<float>(grad_query);
          p.grad_strips = pointer<float>(grad_strips);
          p.grad_scale = pointer<double>(grad_scale);
          p.workspace = pointer<void>(workspace);
          Status status;
          {
            py::gil_scoped_release release;
            status = cuda::azimuth_crop_backward(p, device, pointer<void>(stream));
          }
          check_cuda(status, "azimuth_crop_backward", p.query, p.strips);
        });
}

}  // namespace geoloc_fast::bindings
