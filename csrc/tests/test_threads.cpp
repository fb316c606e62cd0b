// parallel_for: every item once, from several threads at once, nested, and in a forked child. Meant to be run under the
// thread sanitizer too.
// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "cpu/threads.h"
#include "tests/check.h"

namespace geoloc_fast::cpu {
namespace {

// Plain ints: a second thread at an item, or a caller that leaves too early, is a data race.
bool all_once(int64_t items, int64_t grain, int threads) {
  std::vector<int> count(static_cast<size_t>(items), 0);
  auto task = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) ++count[static_cast<size_t>(i)];
  };
  parallel_for(items, grain, threads, task);
  for (int n : count)
    if (n != 1) return false;
  return true;
}

void test_every_item_once() {
  for (int64_t items : {0, 1, 2, 7, 64, 1000})
    for (int64_t grain : {1, 3, 1000})
      for (int threads : {-1, 0, 1, 2, 5, 300})
        CHECK(all_once(items, grain, threads), "%d items by %d on %d threads", static_cast<int>(items),
              static_cast<int>(grain), threads);
}

void test_callers_at_once() {
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 8; ++c)
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round)
        if (!all_once(50, 1, 4)) ++wrong;
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0, "%d calls missed items", wrong.load());
}

void test_a_task_may_call() {
  std::atomic<int> wrong{0};
  auto task = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (!all_once(20, 1, 4)) ++wrong;
  };
  parallel_for(16, 1, 4, task);
  CHECK(wrong == 0, "%d inner calls missed items", wrong.load());
}

void test_after_fork() {
  CHECK(all_once(100, 1, 4), "before the fork");
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);  // a child that waits for the parent's threads would wait for ever
    _exit(all_once(100, 1, 4) && all_once(1000, 7, 3) ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status %d", status);
  CHECK(all_once(100, 1, 4), "the parent after the fork");
}

}  // namespace
}  // namespace geoloc_fast::cpu

int main() {
#if defined(__SANITIZE_THREAD__)
  const bool forks = false;  // the sanitizer does not follow threads started in a forked child
#else
  const bool forks = true;
#endif
  geoloc_fast::cpu::test_every_item_once();
  geoloc_fast::cpu::test_callers_at_once();
  geoloc_fast::cpu::test_a_task_may_call();
  if (forks) geoloc_fast::cpu::test_after_fork();
  return geoloc_fast::tests::failures();
}
