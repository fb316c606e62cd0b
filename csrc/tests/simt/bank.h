// Banks and queries for the emulated kernels: made by the CPU, held in buffers of the emulated device.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "geoloc_fast/strip_bank.h"
#include "tests/check.h"
#include "tests/simt/buffer.h"
#include "tests/values.h"

namespace geoloc_fast::simt {

using tests::Memory;
using tests::random_values;

struct Bank {
  Bank(const std::vector<float>& strips, int64_t count, int64_t values, int64_t columns, bool bf16)
      : view(strip_bank_view(nullptr, count, values, columns, bf16)),
        circle(tests::circle_of(columns)),
        blocks((count + kStripLanes - 1) / kStripLanes * view.block_bytes) {
    const Memory space(cpu::strip_pack_workspace(columns, 1));
    view.blocks = blocks.data();
    CHECK(cpu::strip_pack(view, blocks.data(), strips.data(), circle.data(), space, 1) == Status::kOk);
  }
  StripBankView view;
  Buffer<double> circle;
  Buffer<uint8_t> blocks;
};

}  // namespace geoloc_fast::simt
