// Banks and queries for the emulated kernels: made by the CPU, held in buffers of the emulated device.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>
#include <random>
#include <vector>

#include "geoloc_fast/strip_bank.h"
#include "tests/check.h"
#include "tests/simt/buffer.h"

namespace geoloc_fast::simt {

inline std::vector<double> circle_of(int64_t columns) {
  std::vector<double> circle(static_cast<size_t>(2 * columns));
  for (int64_t i = 0; i < columns; ++i) {
    circle[i] = std::cos(2 * M_PI * static_cast<double>(i) / static_cast<double>(columns));
    circle[columns + i] = std::sin(2 * M_PI * static_cast<double>(i) / static_cast<double>(columns));
  }
  return circle;
}

inline std::vector<float> random_values(int64_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(generator);
  return values;
}

// Work space for the CPU, aligned as it asks.
struct HostSpace {
  explicit HostSpace(int64_t bytes) : memory(static_cast<size_t>(bytes + 64)) {}
  void* get() {
    void* at = memory.data();
    size_t room = memory.size();
    return std::align(64, 1, at, room);
  }
  std::vector<uint8_t> memory;
};

struct Bank {
  Bank(const std::vector<float>& strips, int64_t count, int64_t values, int64_t columns, bool bf16)
      : view(strip_bank_view(nullptr, count, values, columns, bf16)),
        circle(circle_of(columns)),
        blocks((count + kStripLanes - 1) / kStripLanes * view.block_bytes) {
    HostSpace space(cpu::strip_pack_workspace(columns, 1));
    view.blocks = blocks.data();
    CHECK(cpu::strip_pack(view, blocks.data(), strips.data(), circle.data(), space.get(), 1) == Status::kOk);
  }
  StripBankView view;
  Buffer<double> circle;
  Buffer<uint8_t> blocks;
};

}  // namespace geoloc_fast::simt
