// A SIMT machine on the CPU: runs the very source of the CUDA kernels, so that a machine without a GPU or nvcc tests
// them. Threads of a block are fibers of one CPU thread; blocks run one after the other.
// SPDX-License-Identifier: Apache-2.0
//
// A fiber runs until it waits: at a block barrier, or at a warp collective (shuffle, vote, mma, ldmatrix, __syncwarp).
// Who goes first is the order: forward, backward, or random from a seed (then atomics are places to change over too).
// A result that needs a barrier that is not there comes out wrong in one of them.
//
// What it finds, each a text in `take_error`:
//   a barrier or collective that not all threads reach; lanes of a warp at different collectives
//   cp.async data used too early: a copy lands only when its thread waits for the group, and is poison until then
//   writes past a buffer or a shared array (red zones); under the address sanitizer reads too, at the spot
//   misaligned vector accesses; shared memory beyond what a block may have; block sizes and grids no GPU takes
// Shared memory is poison (NaN in every float type, -1 in every integer) when a block begins, and so are buffers that
// a test makes for output. Not modelled: caches and the memory order between blocks.
#pragma once
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned an_x = 1, unsigned an_y = 1, unsigned an_z = 1) : x(an_x), y(an_y), z(an_z) {}
};

// Of the fiber that runs.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace geoloc_fast::simt {

enum class Order { kForward, kBackward, kRandom };
constexpr const char* kOrderNames[] = {"forward", "backward", "random"};
constexpr uint8_t kPoison = 0xff;
constexpr int64_t kMaxShared = 227 << 10;

// How the launches that follow are scheduled.
void set_order(Order order, uint32_t seed = 0);

// Runs `kernel` once for every thread of the grid. False: `take_error` says what was wrong.
bool run(dim3 grid, int threads, int64_t dynamic_shared_bytes, const std::function<void()>& kernel);

// The first error since the last call; empty if there was none.
std::string take_error();

// What follows is for kernels, by way of tests/simt/device.h.

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void sync_block();
void maybe_yield();
int lane_id();

// The static shared object that belongs to `key` (one address for every type), and the dynamic shared memory.
void* static_shared(const void* key, int64_t bytes, int64_t alignment, bool* is_new);
void* dynamic_shared();

// Waits until every lane in `mask` has come with the same `kind`; then `compute` gets what the lanes brought.
void collective(const char* kind, uint32_t mask, void* brought, void (*compute)(void* const* lanes, uint32_t mask));

void copy_async(void* to, const void* from, int64_t bytes);  // a null `from`: zeros
void copy_async_commit();
void copy_async_wait(int64_t groups_left);

// A kernel's vector access must be aligned, and lie inside a buffer of tests/simt/buffer.h or in shared memory.
void check_access(const void* at, int64_t bytes, const char* what);

// Buffers that kernels may touch.
void register_buffer(const void* begin, int64_t bytes);
void forget_buffer(const void* begin);
void report(const std::string& what);

}  // namespace geoloc_fast::simt
