// The least a test program needs: CHECK counts failures and says where, and main ends with `return failures();`.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <atomic>
#include <cstdio>

#include "cpu/isa.h"

namespace geoloc_fast::tests {

inline std::atomic<int>& failure_count() {
  static std::atomic<int> count{0};
  return count;
}

inline int failures() {
  std::printf("%d failures\n", failure_count().load());
  return failure_count() ? 1 : 0;
}

// Runs `function(name)` with every instruction set that this machine has.
template <typename Function>
void for_each_isa(Function function) {
  const cpu::Isa before = cpu::current_isa();
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const cpu::Isa isa = static_cast<cpu::Isa>(i);
    if (cpu::isa_problem(isa)[0] != '\0') continue;
    cpu::set_current_isa(isa);
    function(cpu::isa_name(isa));
  }
  cpu::set_current_isa(before);
}

}  // namespace geoloc_fast::tests

#define CHECK(condition, ...)                                                    \
  do {                                                                           \
    if (!(condition)) {                                                          \
      if (geoloc_fast::tests::failure_count()++ < 20) {                          \
        std::printf("%s:%d: CHECK(%s) failed:", __FILE__, __LINE__, #condition); \
        std::printf(" " __VA_ARGS__);                                            \
        std::printf("\n");                                                       \
      }                                                                          \
    }                                                                            \
  } while (0)
