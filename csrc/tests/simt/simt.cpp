// SPDX-License-Identifier: Apache-2.0
#include "tests/simt/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "tests/simt/buffer.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// Saves the callee's registers on this stack, leaves the stack pointer in *from, and goes on at `to`.
#if defined(__x86_64__)
extern "C" void geoloc_fast_simt_switch(void** from, void* to);
asm(R"(
.text
.type geoloc_fast_simt_switch, @function
geoloc_fast_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size geoloc_fast_simt_switch, . - geoloc_fast_simt_switch
)");
#endif

namespace geoloc_fast::simt {
namespace {

constexpr int64_t kStackBytes = 256 << 10;
constexpr int64_t kSharedGap = 256;

struct Copy {
  uint8_t* to;
  const uint8_t* from;  // null: zeros
  int64_t bytes;
};

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Fiber {
  uint3 index;
  int lane, warp;
  State state;
  std::vector<Copy> open;                 // copies of no group yet
  std::vector<std::vector<Copy>> groups;  // oldest first
  void* stack_pointer;
#if !defined(__x86_64__)
  ucontext_t context;
#endif
};

struct Warp {
  const char* kind;
  uint32_t mask, arrived;
  void* brought[32];
};

struct Object {
  int64_t begin, bytes;
};

struct Machine {
  Order order = Order::kForward;
  std::mt19937 random;
  std::string error;
  std::map<const uint8_t*, int64_t> buffers;

  // Of the block that runs.
  const std::function<void()>* kernel;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Fiber* current;
  int at_barrier;
  bool failed;
  std::map<const void*, Object> statics;
  int64_t shared_used, dynamic_begin, dynamic_bytes;

  uint8_t* stacks = nullptr;
  int64_t stack_count = 0;
  uint8_t* shared = nullptr;
  void* scheduler;  // its stack pointer
#if !defined(__x86_64__)
  ucontext_t scheduler_context;
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_bottom;
  size_t scheduler_size;
#endif
};

Machine& machine() {
  static Machine* the_machine = new Machine;
  return *the_machine;
}

uint8_t* stack_of(const Machine& m, const Fiber& fiber) { return m.stacks + (&fiber - m.fibers.data()) * kStackBytes; }

// From the running fiber to the scheduler. `for_good`: never to come back.
void leave([[maybe_unused]] bool for_good) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, m.scheduler_bottom, m.scheduler_size);
#endif
#if defined(__x86_64__)
  geoloc_fast_simt_switch(&fiber.stack_pointer, m.scheduler);
#else
  swapcontext(&fiber.context, &m.scheduler_context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, &m.scheduler_bottom, &m.scheduler_size);
#endif
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine().scheduler_bottom, &machine().scheduler_size);
#endif
  (*machine().kernel)();
  Fiber& fiber = *machine().current;
  bool pending = !fiber.open.empty();
  for (const std::vector<Copy>& group : fiber.groups) pending = pending || !group.empty();
  if (pending) fail("a thread ended with asynchronous copies it did not wait for");
  fiber.state = State::kDone;
  leave(true);
  __builtin_unreachable();
}

void enter(Fiber& fiber) {
  Machine& m = machine();
  m.current = &fiber;
  threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_of(m, fiber), kStackBytes);
#endif
#if defined(__x86_64__)
  geoloc_fast_simt_switch(&m.scheduler, fiber.stack_pointer);
#else
  swapcontext(&m.scheduler_context, &fiber.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void make_fiber(Machine& m, Fiber& fiber) {
  uint8_t* stack = stack_of(m, fiber);
  ASAN_UNPOISON_MEMORY_REGION(stack, kStackBytes);
#if defined(__x86_64__)
  // As geoloc_fast_simt_switch leaves a stack: six registers, where to go on, and a return address that is not used.
  void** top = reinterpret_cast<void**>(stack + kStackBytes);
  for (int i = 1; i <= 8; ++i) top[-i] = nullptr;
  top[-2] = reinterpret_cast<void*>(&fiber_main);
  fiber.stack_pointer = top - 8;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &fiber_main, 0);
#endif
}

std::string place() {
  auto text = [](const uint3& at) {
    return "(" + std::to_string(at.x) + "," + std::to_string(at.y) + "," + std::to_string(at.z) + ")";
  };
  return "block " + text(blockIdx);
}

void deadlock(Machine& m) {
  int barrier = 0, done = 0;
  std::string kind;
  int waiting = 0;
  for (const Fiber& fiber : m.fibers) {
    barrier += fiber.state == State::kAtBarrier;
    done += fiber.state == State::kDone;
    if (fiber.state == State::kAtCollective) {
      ++waiting;
      kind = m.warps[fiber.warp].kind;
    }
  }
  std::string what = place() + ": nobody can go on: " + std::to_string(barrier) + " of " +
                     std::to_string(m.fibers.size()) + " threads are at a barrier, " + std::to_string(done) + " ended";
  if (waiting) what += ", " + std::to_string(waiting) + " wait for their warp at " + kind;
  report(what);
  m.failed = true;
}

int64_t place_shared(Machine& m, int64_t bytes, int64_t alignment) {
  m.shared_used = (m.shared_used + alignment - 1) / alignment * alignment;
  const int64_t begin = m.shared_used;
  m.shared_used = (begin + bytes + kSharedGap + 255) / 256 * 256;
  ASAN_UNPOISON_MEMORY_REGION(m.shared + begin, static_cast<size_t>(bytes));
  std::memset(m.shared + begin, kPoison, static_cast<size_t>(bytes));
  return begin;
}

constexpr int64_t kArena = 2 * kMaxShared + (64 << 10);

void check_shared(Machine& m) {
  ASAN_UNPOISON_MEMORY_REGION(m.shared, kArena);
  std::vector<Object> objects;
  for (const auto& entry : m.statics) objects.push_back(entry.second);
  objects.push_back({m.dynamic_begin, m.dynamic_bytes});
  std::sort(objects.begin(), objects.end(), [](const Object& a, const Object& b) { return a.begin < b.begin; });
  int64_t at = 0;
  objects.push_back({m.shared_used + kSharedGap, 0});
  for (const Object& object : objects) {
    for (; at < object.begin; ++at)
      if (m.shared[at] != kRed) {
        report(place() + ": a write past an object in shared memory");
        return;
      }
    at = std::max(at, object.begin + object.bytes);
  }
}

void run_block(Machine& m, int threads) {
  m.fibers.resize(static_cast<size_t>(threads));
  m.warps.assign(static_cast<size_t>(threads / 32), Warp{});
  for (int t = 0; t < threads; ++t) {
    Fiber& fiber = m.fibers[t];
    fiber.index = {static_cast<unsigned>(t), 0, 0};
    fiber.lane = t % 32, fiber.warp = t / 32;
    fiber.state = State::kReady;
    fiber.open.clear();
    fiber.groups.clear();
    make_fiber(m, fiber);
  }
  m.at_barrier = 0;
  m.failed = false;
  m.statics.clear();
  ASAN_UNPOISON_MEMORY_REGION(m.shared, kArena);
  std::memset(m.shared, kRed, kArena);
  ASAN_POISON_MEMORY_REGION(m.shared, kArena);
  m.shared_used = 256;
  m.dynamic_begin = place_shared(m, m.dynamic_bytes, 256);

  std::vector<int> ready;
  for (;;) {
    ready.clear();
    bool all_done = true;
    for (int t = 0; t < threads; ++t) {
      if (m.fibers[t].state == State::kReady) ready.push_back(t);
      all_done = all_done && m.fibers[t].state == State::kDone;
    }
    if (all_done) break;
    if (ready.empty()) {
      deadlock(m);
      break;
    }
    if (m.order == Order::kBackward) std::reverse(ready.begin(), ready.end());
    if (m.order == Order::kRandom) std::shuffle(ready.begin(), ready.end(), m.random);
    for (const int t : ready) {
      if (m.fibers[t].state == State::kReady) enter(m.fibers[t]);
      if (m.failed) break;
    }
    if (m.failed) break;
  }
  check_shared(m);
}

}  // namespace

void set_order(Order order, uint32_t seed) {
  machine().order = order;
  machine().random.seed(seed);
}

void report(const std::string& what) {
  if (machine().error.empty()) machine().error = what;
}

std::string take_error() {
  std::string error;
  std::swap(error, machine().error);
  return error;
}

bool run(dim3 grid, int threads, int64_t dynamic_shared_bytes, const std::function<void()>& kernel) {
  Machine& m = machine();
  if (threads < 32 || threads > 1024 || threads % 32 != 0) {
    report("a block of " + std::to_string(threads) + " threads");
    return false;
  }
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    report("a grid that no GPU takes");
    return false;
  }
  if (dynamic_shared_bytes > kMaxShared) {
    report(std::to_string(dynamic_shared_bytes) + " bytes of shared memory");
    return false;
  }
  if (m.stack_count < threads) {
    if (m.stacks) munmap(m.stacks, static_cast<size_t>(m.stack_count * kStackBytes));
    m.stack_count = threads;
    m.stacks = static_cast<uint8_t*>(mmap(nullptr, static_cast<size_t>(threads * kStackBytes), PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  if (!m.shared) m.shared = static_cast<uint8_t*>(std::aligned_alloc(256, kArena));
  gridDim = grid;
  blockDim = dim3(static_cast<unsigned>(threads));
  m.kernel = &kernel;
  m.dynamic_bytes = dynamic_shared_bytes;
  const int64_t blocks = int64_t{grid.x} * grid.y * grid.z;
  std::vector<int64_t> sequence(static_cast<size_t>(blocks));
  for (int64_t i = 0; i < blocks; ++i) sequence[i] = m.order == Order::kBackward ? blocks - 1 - i : i;
  if (m.order == Order::kRandom) std::shuffle(sequence.begin(), sequence.end(), m.random);
  const bool clean = m.error.empty();
  for (const int64_t i : sequence) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(m, threads);
    if (m.failed) break;
  }
  return !clean || m.error.empty();
}

// The fiber is left where it stands: nothing on its stack is destroyed, so nothing there may own memory.
void fail(const char* format, ...) {
  char what[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  report(place() + ", thread " + std::to_string(threadIdx.x) + ": " + what);
  machine().failed = true;
  leave(true);
  __builtin_unreachable();
}

int lane_id() { return machine().current->lane; }

void sync_block() {
  Machine& m = machine();
  m.current->state = State::kAtBarrier;
  if (++m.at_barrier == static_cast<int>(m.fibers.size())) {
    m.at_barrier = 0;
    for (Fiber& fiber : m.fibers) fiber.state = State::kReady;
  }
  leave(false);
}

void maybe_yield() {
  Machine& m = machine();
  if (m.order == Order::kRandom && m.random() % 4 == 0) leave(false);
}

void collective(const char* kind, uint32_t mask, void* brought, void (*compute)(void* const* lanes, uint32_t mask)) {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  Warp& warp = m.warps[fiber.warp];
  const uint32_t me = 1u << fiber.lane;
  if (!(mask & me)) fail("%s: this lane is not in its own mask", kind);
  if (warp.arrived == 0) warp.kind = kind, warp.mask = mask;
  if (warp.mask != mask || std::strcmp(warp.kind, kind) != 0)
    fail("%s: another lane of the warp is at %s, or waits for other lanes", kind, warp.kind);
  warp.brought[fiber.lane] = brought;
  warp.arrived |= me;
  fiber.state = State::kAtCollective;
  if (warp.arrived == mask) {
    if (compute) compute(warp.brought, mask);
    warp.arrived = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (mask >> lane & 1u) m.fibers[fiber.warp * 32 + lane].state = State::kReady;
  }
  leave(false);
}

void* static_shared(const void* key, int64_t bytes, int64_t alignment, bool* is_new) {
  Machine& m = machine();
  auto found = m.statics.find(key);
  *is_new = found == m.statics.end();
  if (*is_new) {
    int64_t total = m.dynamic_bytes + bytes;
    for (const auto& entry : m.statics) total += entry.second.bytes;
    if (bytes > (48 << 10) || total > kMaxShared) fail("more shared memory than a block may have");
    found = m.statics.emplace(key, Object{place_shared(m, bytes, alignment), bytes}).first;
  }
  return m.shared + found->second.begin;
}

void* dynamic_shared() { return machine().shared + machine().dynamic_begin; }

void check_access(const void* at, int64_t bytes, const char* what) {
  Machine& m = machine();
  const uint8_t* begin = static_cast<const uint8_t*>(at);
  if (reinterpret_cast<uintptr_t>(at) % static_cast<uintptr_t>(bytes) != 0)
    fail("%s of %d bytes is misaligned", what, static_cast<int>(bytes));
  auto inside = [&](const uint8_t* base, int64_t size) { return begin >= base && begin + bytes <= base + size; };
  if (inside(m.shared + m.dynamic_begin, m.dynamic_bytes)) return;
  for (const auto& entry : m.statics)
    if (inside(m.shared + entry.second.begin, entry.second.bytes)) return;
  auto after = m.buffers.upper_bound(begin);
  if (after != m.buffers.begin() && inside(std::prev(after)->first, std::prev(after)->second)) return;
  fail("%s of %d bytes outside every buffer", what, static_cast<int>(bytes));
}

void copy_async(void* to, const void* from, int64_t bytes) {
  check_access(to, bytes, "the target of an asynchronous copy");
  if (from) check_access(from, bytes, "the source of an asynchronous copy");
  std::memset(to, kPoison, static_cast<size_t>(bytes));
  machine().current->open.push_back({static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), bytes});
}

void copy_async_commit() {
  Fiber& fiber = *machine().current;
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void copy_async_wait(int64_t groups_left) {
  Fiber& fiber = *machine().current;
  const int64_t landing = static_cast<int64_t>(fiber.groups.size()) - groups_left;
  for (int64_t i = 0; i < landing; ++i)
    for (const Copy& copy : fiber.groups[i])
      if (copy.from)
        std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
      else
        std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
  if (landing > 0) fiber.groups.erase(fiber.groups.begin(), fiber.groups.begin() + landing);
}

void register_buffer(const void* begin, int64_t bytes) {
  machine().buffers[static_cast<const uint8_t*>(begin)] = bytes;
}
void forget_buffer(const void* begin) { machine().buffers.erase(static_cast<const uint8_t*>(begin)); }

}  // namespace geoloc_fast::simt
