// CHECK counts what fails and says where; main returns failures().
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdio>

#include "cpu/isa.h"

namespace geoloc_fast::tests {

inline int& failure_count() {
  static int count = 0;
  return count;
}

// For the end of main: 0 if all went well.
inline int failures() {
  if (failure_count() > 0) std::fprintf(stderr, "%d checks failed\n", failure_count());
  return failure_count() > 0 ? 1 : 0;
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

// CHECK(condition, printf format and values that say which case it is). Stops printing after 20.
#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition) && ++::geoloc_fast::tests::failure_count() <= 20) {   \
      std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                   \
      std::fprintf(stderr, "\n");                                          \
    }                                                                      \
  } while (false)
