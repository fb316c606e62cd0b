// What several test programs make their cases of.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace geoloc_fast::tests {

using Floats = std::vector<float>;

// Memory aligned to 64, of `bytes` bytes and not one more that a sanitizer would not see.
struct Memory {
  explicit Memory(int64_t bytes)
      : data(static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))), std::free) {
    std::memset(data.get(), 0xAB, static_cast<size_t>((bytes + 63) / 64 * 64));
  }
  operator void*() const { return data.get(); }
  std::unique_ptr<uint8_t, decltype(&std::free)> data;
};

inline Floats random_values(int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats values(static_cast<size_t>(n));
  for (float& value : values) value = normal(generator);
  return values;
}

// The table of strip_bank.h.
inline std::vector<double> circle_of(int64_t columns) {
  std::vector<double> circle(static_cast<size_t>(2 * columns));
  for (int64_t i = 0; i < columns; ++i) {
    circle[i] = std::cos(2 * M_PI * static_cast<double>(i) / static_cast<double>(columns));
    circle[columns + i] = std::sin(2 * M_PI * static_cast<double>(i) / static_cast<double>(columns));
  }
  return circle;
}

}  // namespace geoloc_fast::tests
