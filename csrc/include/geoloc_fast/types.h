// Words every operator of the native core shares. No Python, no torch, no CUDA header.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace geoloc_fast {

enum class DType : int32_t { kUInt8 = 0, kFloat16 = 1, kBFloat16 = 2, kFloat32 = 3 };

// What a native call answers. The bindings turn everything but kOk into an exception that names
// the operator; arguments were already validated in Python, so these are the last line only.
enum class Status : int32_t { kOk = 0, kBadDType = 1, kBadSize = 2, kNoDevice = 3, kLaunchFailed = 4 };

constexpr int kMaxChannels = 16;  // of an image: mean and std travel by value in the parameters

}  // namespace geoloc_fast
