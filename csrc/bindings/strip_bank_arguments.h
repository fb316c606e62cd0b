// How Python hands a bank to either native module.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/bindings.h"
#include "geoloc_fast/strip_topk.h"

namespace geoloc_fast::bindings {

// [count, K, W]
using BankSize = std::array<int64_t, 3>;

inline StripBankView view_of(uintptr_t blocks, const BankSize& size, bool bf16) {
  return strip_bank_view(reinterpret_cast<const void*>(blocks), size[0], size[1], size[2], bf16);
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// [batch, padded width] and one more size
inline StripTopkParams topk_params(const BankSize& size, bool bf16, int64_t batch, int64_t padded_width, int64_t k) {
  StripTopkParams p{};
  p.bank = view_of(0, size, bf16);
  p.batch = batch, p.padded_width = padded_width, p.k = k;
  return p;
}

}  // namespace geoloc_fast::bindings
