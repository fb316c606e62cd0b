// Work shared between threads. The caller brings its thread budget with every call; the pool keeps the
// threads it has once started asleep between calls, and starts again in a forked child.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace geoloc_fast::cpu {

using Task = void (*)(void* context, int64_t begin, int64_t end);

// Runs task over [0, items) in pieces of `grain`, on at most `threads` threads, the caller being one of
// them. Which thread runs which piece is not fixed; a task writes only what belongs to its items, so results
// do not depend on it. Calls from several threads at once are safe: each is served by its caller at least.
void parallel_for(int64_t items, int64_t grain, int threads, Task task, void* context);

template <typename Function>
void parallel_for(int64_t items, int64_t grain, int threads, Function& function) {
  parallel_for(
      items, grain, threads,
      [](void* context, int64_t begin, int64_t end) { (*static_cast<Function*>(context))(begin, end); }, &function);
}

// How many of `threads` are worth their wake-up for a call of so many multiply-adds: one that sleeps costs its caller
// ten microseconds or so, in which a core does a few hundred thousand of them.
inline int worth_threads(double multiply_adds, int threads) {
  constexpr double kEach = 2e5;
  return multiply_adds < kEach             ? 1
         : multiply_adds < kEach * threads ? static_cast<int>(multiply_adds / kEach) + 1
                                           : threads;
}

}  // namespace geoloc_fast::cpu
