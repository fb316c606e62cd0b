// SPDX-License-Identifier: Apache-2.0
#include "bindings/azimuth_cuda_error.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {

void bind_azimuth_match_cuda(py::module_& m) {
  m.attr("max_columns") = cuda::kMaxStripColumns;
  // (plan, bytes of work space) for a call of these sizes; plan -1 leaves the choice to the cost model.
  m.def("azimuth_match_plan", [](const Sizes& query, const Sizes& strips, bool mixed_widths, int select, bool slope,
                                 bool backward, int plan) {
    const AzimuthMatchSize size{
        query[0], strips[0], query[1] * query[2], query[3], strips[3], mixed_widths, static_cast<Selection>(select),
        slope,    backward};
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
    const AzimuthMatchSize size{
        query[0], strips[0], query[1] * query[2], query[3], strips[3], false, Selection::kCorrelation, false, false};
    return cuda::azimuth_match_shared_bytes(size, cuda::azimuth_match_plan(size));
  });
  m.def("azimuth_match",
        [](uintptr_t query, int query_dtype, const Sizes& query_size, const Sizes& query_stride, uintptr_t strips,
           int strips_dtype, const Sizes& strips_size, const Sizes& strips_stride, uintptr_t query_width, int select,
           uintptr_t scale, double tau, uintptr_t noise, const std::array<int64_t, 3>& noise_stride, uintptr_t score,
           uintptr_t shift, uintptr_t slope, uintptr_t scale_slope, int plan, uintptr_t workspace, int device,
           uintptr_t stream) {
          AzimuthMatchParams p{};
          p.query = strip_tensor(query, query_dtype, query_size, query_stride);
          p.strips = strip_tensor(strips, strips_dtype, strips_size, strips_stride);
          p.query_width = pointer<const int64_t>(query_width);
          p.select = static_cast<Selection>(select);
          p.device_scale = pointer<const double>(scale), p.tau = tau;
          p.noise = pointer<const float>(noise);
          for (int i = 0; i < 3; ++i) p.noise_stride[i] = noise_stride[i];
          p.score = pointer<float>(score);
          p.shift = pointer<int64_t>(shift);
          p.slope = pointer<float>(slope);
          p.scale_slope = pointer<float>(scale_slope);
          p.plan = static_cast<AzimuthPlan>(plan);
          p.workspace = pointer<void>(workspace);
          Status status;
          {
            py::gil_scoped_release release;
            status = cuda::azimuth_match(p, device, pointer<void>(stream));
          }
          check_cuda(status, "azimuth_match", p.query, p.strips);
        });
  m.def("azimuth_match_backward",
        [](uintptr_t query, int query_dtype, const Sizes& query_size, const Sizes& query_stride, uintptr_t strips,
           int strips_dtype, const Sizes& strips_size, const Sizes& strips_stride, uintptr_t query_width, int select,
           uintptr_t scale, double tau, uintptr_t grad_score, uintptr_t score, uintptr_t shift, uintptr_t slope,
           uintptr_t scale_slope, uintptr_t grad_query, uintptr_t grad_strips, uintptr_t grad_scale, int plan,
           uintptr_t workspace, int device, uintptr_t stream) {
          AzimuthMatchBackwardParams p{};
          p.query = strip_tensor(query, query_dtype, query_size, query_stride);
          p.strips = strip_tensor(strips, strips_dtype, strips_size, strips_stride);
          p.query_width = pointer<const int64_t>(query_width);
          p.select = static_cast<Selection>(select);
          p.device_scale = pointer<const double>(scale), p.tau = tau;
          p.grad_score = pointer<const float>(grad_score);
          p.score = pointer<const float>(score);
          p.shift = pointer<const int64_t>(shift);
          p.slope = pointer<const float>(slope);
          p.scale_slope = pointer<const float>(scale_slope);
          p.grad_query = pointer<float>(grad_query);
          p.grad_strips = pointer<float>(grad_strips);
          p.grad_scale = pointer<double>(grad_scale);
          p.plan = static_cast<AzimuthPlan>(plan);
          p.workspace = pointer<void>(workspace);
          Status status;
          {
            py::gil_scoped_release release;
            status = cuda::azimuth_match_backward(p, device, pointer<void>(stream));
          }
          check_cuda(status, "azimuth_match_backward", p.query, p.strips);
        });
}

}  // namespace geoloc_fast::bindings
