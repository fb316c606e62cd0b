// SPDX-License-Identifier: Apache-2.0
#include "cpu/threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace geoloc_fast::cpu {
namespace {

// One call in flight. It lives on its caller's stack, so the caller may not leave while a worker holds it.
struct Job {
  Task task;
  void* context;
  int64_t items, grain;
  std::atomic<int64_t> next{0};
  int seats;        // workers that may still join; guarded by the pool's mutex
  int workers = 0;  // workers inside; guarded by the pool's mutex

  void work() {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= items) return;
      task(context, begin, std::min(items, begin + grain));
    }
  }
};

constexpr int kMaxWorkers = 255;

class Pool {
 public:
  void run(Job& job) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      // One job at a time has the workers; a second caller does its own work alone rather than wait.
      if (job_ != nullptr) {
        lock.unlock();
        job.work();
        return;
      }
      while (started_ < std::min(job.seats, kMaxWorkers)) {
        std::thread([this] { serve(); }).detach();
        ++started_;
      }
      job_ = &job;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;
    done_.wait(lock, [&] { return job.workers == 0; });
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != nullptr && job_->seats > 0; });
      Job* job = job_;
      --job->seats;
      ++job->workers;
      lock.unlock();
      job->work();
      lock.lock();
      if (--job->workers == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int started_ = 0;
};

// Never destroyed: detached workers sleep on it until the process ends. A forked child has none of the
// parent's workers, so it begins with a new pool.
std::atomic<Pool*> pool{nullptr};

Pool& current_pool() {
  static const bool registered = [] {
    pool.store(new Pool);
    pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool); });
    return true;
  }();
  (void)registered;
  return *pool.load();
}

}  // namespace

void parallel_for(int64_t items, int64_t grain, int threads, Task task, void* context) {
  if (items <= 0) return;
  const int64_t pieces = (items + grain - 1) / grain;
  const int seats = static_cast<int>(std::min<int64_t>(pieces, std::max(threads, 1))) - 1;
  if (seats <= 0) {
    task(context, 0, items);
    return;
  }
  Job job{task, context, items, grain, {}, seats};
  current_pool().run(job);
}

}  // namespace geoloc_fast::cpu
