// How Python hands strips to the azimuth operators.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/bindings.h"
#include "geoloc_fast/azimuth_match.h"

namespace geoloc_fast::bindings {

inline StripTensor strip_tensor(uintptr_t data, int dtype, const Sizes& size, const Sizes& stride) {
  return {reinterpret_cast<const void*>(data),         static_cast<DType>(dtype), size[0], size[1], size[2], size[3],
          {stride[0], stride[1], stride[2], stride[3]}};
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace geoloc_fast::bindings
