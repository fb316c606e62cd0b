// What the binding files of the native modules share: one file per operator adds its functions to a module.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "geoloc_fast/types.h"

namespace geoloc_fast::bindings {

using Sizes = std::array<int64_t, 4>;

void bind_azimuth_crop_cpu(pybind11::module_& m);
void bind_azimuth_match_cpu(pybind11::module_& m);
void bind_gumbel_noise_cpu(pybind11::module_& m);
void bind_polar_resample_cpu(pybind11::module_& m);
void bind_strip_bank_cpu(pybind11::module_& m);
void bind_azimuth_crop_cuda(pybind11::module_& m);
void bind_azimuth_match_cuda(pybind11::module_& m);
void bind_gumbel_noise_cuda(pybind11::module_& m);
void bind_polar_resample_cuda(pybind11::module_& m);
void bind_strip_bank_cuda(pybind11::module_& m);

// "[2, 3, 512, 512]"
template <typename Size>
std::string shape_text(const Size& sizes) {
  std::string text;
  for (const int64_t size : sizes) text += (text.empty() ? "[" : ", ") + std::to_string(size);
  return text + "]";
}

// Every status but kOk as the Python exception it means.
inline void check(Status status, const char* op, const std::string& detail = "") {
  switch (status) {
    case Status::kOk: return;
    case Status::kBadDType: throw std::invalid_argument(std::string(op) + ": dtype not built into this module");
    case Status::kBadSize: throw std::invalid_argument(std::string(op) + ": sizes do not fit together");
    case Status::kNoDevice: throw std::runtime_error(std::string(op) + ": device not available. " + detail);
    case Status::kLaunchFailed: throw std::runtime_error(std::string(op) + ": launch failed. " + detail);
  }
}

}  // namespace geoloc_fast::bindings
