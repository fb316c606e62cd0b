// _native_cuda: the CUDA kernels. Imports on a machine without a driver; `device_problem` then says why
// nothing can run. Device index and stream are arguments of every call.
// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include "bindings/bindings.h"

namespace py = pybind11;

namespace geoloc_fast::bindings {
namespace {

// Empty when kernels of this module can run here.
std::string device_problem() {
  int driver = 0, runtime = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0) return "no CUDA driver is installed";
  if (driver / 1000 < runtime / 1000)
    return "the CUDA driver supports version " + std::to_string(driver / 1000) + ", this module was built with " +
           std::to_string(runtime / 1000) + ": update the driver or build with an older toolkit";
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return devices > 0 ? "" : "no CUDA device found";
}

}  // namespace

PYBIND11_MODULE(_native_cuda, m) {
  m.doc() = "CUDA kernels of geoloc_fast. Called by geoloc_fast.ops; not a public interface.";
  m.attr("nvcc") = GEOLOC_FAST_NVCC;
  m.attr("architectures") = GEOLOC_FAST_ARCHITECTURES;
  m.def("device_problem", &device_problem);

  bind_azimuth_crop_cuda(m);
  bind_azimuth_match_cuda(m);
  bind_gumbel_noise_cuda(m);
  bind_polar_resample_cuda(m);
  bind_strip_bank_cuda(m);
}

}  // namespace geoloc_fast::bindings
