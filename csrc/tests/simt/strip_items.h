// Strips and queries for the tests of the azimuth operators in the emulator.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "common/half.h"
#include "geoloc_fast/azimuth_match.h"
#include "tests/check.h"
#include "tests/simt/buffer.h"
#include "tests/values.h"

namespace geoloc_fast::simt {

using tests::Floats;
using tests::Memory;
using tests::random_values;

inline const float kNan = std::numeric_limits<float>::quiet_NaN();
inline const float kInfinity = std::numeric_limits<float>::infinity();

// Contiguous, or with `strided` a view of something larger whose azimuth is not innermost.
template <typename T>
struct Items {
  Buffer<T> buffer;
  StripTensor tensor;

  static std::vector<T> spread(const Floats& values, int64_t rows, int64_t columns, bool strided) {
    std::vector<T> out(values.size() * (strided ? 2 : 1), from_float<T>(kNan));
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t x = 0; x < columns; ++x)
        out[strided ? (x * rows + row) * 2 : row * columns + x] = from_float<T>(values[row * columns + x]);
    return out;
  }
  Items(const Floats& values, int64_t items, int64_t channels, int64_t height, int64_t columns, bool strided)
      : buffer(spread(values, items * channels * height, columns, strided)) {
    const int64_t rows = channels * height;
    const DType dtype = sizeof(T) == 4                ? DType::kFloat32
                        : std::is_same_v<T, BFloat16> ? DType::kBFloat16
                                                      : DType::kFloat16;
    tensor = {buffer.data(), dtype, items, channels, height, columns, {rows * columns, height * columns, columns, 1}};
    if (strided) {
      const int64_t whole = items * rows * 2;
      const int64_t stride[4] = {rows * 2, height * 2, 2, whole};
      std::copy(stride, stride + 4, tensor.stride);
    }
  }
};

inline void check_close(const float* actual, const Floats& expected, double tolerance, const std::string& what) {
  double largest = 1, worst = 0;
  for (const float value : expected)
    if (!std::isnan(value)) largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    const double off = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
    worst = off <= worst ? worst : off;  // NaN counts
  }
  CHECK(worst <= tolerance * largest, "%s: off by %g of %g", what.c_str(), worst, largest);
}

}  // namespace geoloc_fast::simt
