// The emulator itself: what it must compute, and what it must notice.
// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "cuda/device.h"
#include "tests/check.h"
#include "tests/simt/buffer.h"

namespace geoloc_fast::cuda {
namespace {

using simt::Buffer;
using simt::Order;

constexpr int kThreads = 64;

struct Line {
  int32_t values[kThreads];
};

// Every thread reads what a thread of the other warp wrote.
__global__ void turn_round(int32_t* out, bool with_barrier) {
  Line& line = shared<Line>();
  const int t = static_cast<int>(threadIdx.x);
  line.values[t] = 10 * t + static_cast<int>(blockIdx.x);
  if (with_barrier) sync_block();
  out[static_cast<int>(blockIdx.x) * kThreads + t] = line.values[kThreads - 1 - t];
}

// A copy of 16 bytes a thread, read by the thread itself and by a thread of the other warp.
__global__ void fetch(const float* in, float* out, int leave_out) {
  float* staged = dynamic_shared<float>();
  const int t = static_cast<int>(threadIdx.x);
  copy_async16(staged + 4 * t, in + 4 * t, t != 5);
  copy_async_commit();
  if (leave_out != 1) copy_async_wait<0>();
  if (leave_out != 2) sync_block();
  for (int i = 0; i < 4; ++i) out[4 * t + i] = staged[4 * t + i] + staged[4 * (kThreads - 1 - t) + i];
  if (leave_out == 1) copy_async_wait<0>();
}

__global__ void misbehave(int how, const float* in, float* out) {
  const int t = static_cast<int>(threadIdx.x);
  switch (how) {
    case 0:
      if (t != 7) sync_block();
      break;
    case 1:
      if (t < 32)
        sync_warp();
      else
        sync_block();
      if (t == 40) return;
      sync_block();
      break;
    case 2:
      if (t % 2 == 0)
        shuffle_xor(t, 1);
      else
        sync_warp();
      break;
    case 3: out[t] = load_vector<float4>(in + t).x; break;
    case 4: out[t] = load_vector<float4>(in + 4 * (t + 1)).x; break;
    case 5:
      if (t == kThreads - 1) copy_async16(dynamic_shared<float>() + 4 * (t + 1), in);
      break;
    case 6: copy_async16(dynamic_shared<float>() + 4 * t, in + 4 * t); break;
    case 7: atomic_add(out + kThreads, 1.0f); break;
    default: break;
  }
}

// Sums of every kind, by every means.
__global__ void count(int32_t* out) {
  const int t = static_cast<int>(threadIdx.x), lane = lane_id();
  int32_t sum = t;
  for (int distance = 16; distance > 0; distance /= 2) sum += shuffle_xor(sum, distance);
  int32_t down = t;
  for (int distance = 16; distance > 0; distance /= 2) down += shuffle_down(down, distance);
  const int32_t before = shuffle_up(t, 1);
  if (lane == 0) atomic_add(out, sum), atomic_add(out + 1, down), atomic_max(out + 2, t);
  if (ballot(lane % 3 == 0) != 0x49249249u || any(lane > 31) || !all(lane >= 0)) atomic_add(out + 3, 1);
  if (before != (lane == 0 ? t : t - 1) || shuffle(t, 3) != t - lane + 3) atomic_add(out + 3, 1);
  int32_t seen = atomic_cas(out + 4, 0, 0);
  for (int32_t was = -1; was != seen;) {
    was = seen;
    seen = atomic_cas(out + 4, was, was + t);
  }
}

struct Tile {
  alignas(16) uint16_t a[16][16], b[16][8];
};

// d = a b; a is row-major, b is k-major.
__global__ void multiply(const uint16_t* a, const uint16_t* b, float* d) {
  Tile& tile = shared<Tile>();
  const int t = static_cast<int>(threadIdx.x);
  for (int i = t; i < 256; i += 32) tile.a[i / 16][i % 16] = a[i];
  for (int i = t; i < 128; i += 32) tile.b[i / 8][i % 8] = b[i];
  sync_warp();
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) {
    const uint16_t* pair = &tile.a[t / 4 + 8 * (i % 2)][2 * (t % 4) + 8 * (i / 2)];
    left[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  for (int i = 0; i < 2; ++i) {
    const int k = 2 * (t % 4) + 8 * i;
    right[i] = tile.b[k][t / 4] | static_cast<uint32_t>(tile.b[k + 1][t / 4]) << 16;
  }
  float sums[4] = {};
  mma_bf16(sums, left, right);
  for (int i = 0; i < 4; ++i) d[(t / 4 + 8 * (i / 2)) * 8 + 2 * (t % 4) + i % 2] = sums[i];
}

__global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const int t = static_cast<int>(threadIdx.x), g = t / 4, k = t % 4;
  const uint32_t left[4] = {__float_as_uint(a[g * 8 + k]), __float_as_uint(a[(g + 8) * 8 + k]),
                            __float_as_uint(a[g * 8 + k + 4]), __float_as_uint(a[(g + 8) * 8 + k + 4])};
  const uint32_t right[2] = {__float_as_uint(b[k * 8 + g]), __float_as_uint(b[(k + 4) * 8 + g])};
  float sums[4] = {};
  mma_tf32(sums, left, right);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * k + i % 2] = sums[i];
}

template <typename Function>
void in_every_order(Function function) {
  for (const Order order : {Order::kForward, Order::kBackward, Order::kRandom})
    for (uint32_t seed = 0; seed < (order == Order::kRandom ? 3 : 1); ++seed) {
      simt::set_order(order, seed);
      function(simt::kOrderNames[static_cast<int>(order)]);
    }
  simt::set_order(Order::kForward);
}

void barriers_order_shared_memory() {
  int wrong_without = 0;
  in_every_order([&](const char* order) {
    for (const bool with_barrier : {true, false}) {
      Buffer<int32_t> out(3 * kThreads);
      CHECK(launch(turn_round, 3, 1, kThreads, 0, nullptr, out.data(), with_barrier) == Status::kOk, "%s", order);
      int wrong = 0;
      for (int i = 0; i < out.size(); ++i) wrong += out[i] != 10 * (kThreads - 1 - i % kThreads) + i / kThreads;
      if (with_barrier)
        CHECK(wrong == 0, "%s: %d values wrong", order, wrong);
      else
        wrong_without += wrong;
    }
  });
  CHECK(wrong_without > 0, "a missing barrier went unnoticed");
}

void asynchronous_copies_land_late() {
  int wrong[3] = {};
  in_every_order([&](const char* order) {
    for (int leave_out = 0; leave_out < 3; ++leave_out) {
      std::vector<float> values(4 * kThreads);
      for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
      const Buffer<float> in(values);
      Buffer<float> out(4 * kThreads);
      CHECK(launch(fetch, 1, 1, kThreads, 16 * kThreads, nullptr, in.data(), out.data(), leave_out) == Status::kOk,
            "%s: %s", order, simt::take_error().c_str());
      for (int i = 0; i < out.size(); ++i) {
        const int other = 4 * (kThreads - 1 - i / 4) + i % 4;
        const float expected = (i / 4 == 5 ? 0.0f : values[i]) + (other / 4 == 5 ? 0.0f : values[other]);
        wrong[leave_out] += out[i] != expected;
      }
    }
  });
  CHECK(wrong[0] == 0, "%d values wrong", wrong[0]);
  CHECK(wrong[1] > 0, "a missing wait went unnoticed");
  CHECK(wrong[2] > 0, "a missing barrier after the wait went unnoticed");
}

void misbehaviour_is_named() {
  const char* expected[] = {"nobody can go on", "nobody can go on",     "another lane of the warp",
                            "misaligned",       "outside every buffer", "outside every buffer",
                            "did not wait for", "outside every buffer"};
  for (int how = 0; how < 8; ++how)
    in_every_order([&](const char* order) {
      const Buffer<float> in(std::vector<float>(4 * kThreads, 1.0f));
      Buffer<float> out(kThreads);
      const Status status = launch(misbehave, 1, 1, kThreads, 16 * kThreads, nullptr, how, in.data(), out.data());
      const std::string error = simt::take_error();
      CHECK(status == Status::kLaunchFailed && error.find(expected[how]) != std::string::npos, "%s, case %d: '%s'",
            order, how, error.c_str());
    });
  const Buffer<float> none(1);
  CHECK(launch(misbehave, 1, 1, 48, 0, nullptr, 9, none.data(), none.data()) == Status::kLaunchFailed, "48 threads");
  CHECK(!simt::take_error().empty(), "48 threads");
  CHECK(launch(misbehave, 1, 70000, 32, 0, nullptr, 9, none.data(), none.data()) == Status::kBadSize, "grid");
  CHECK(launch(misbehave, int64_t{1} << 31, 1, 32, 0, nullptr, 9, none.data(), none.data()) == Status::kBadSize,
        "grid");
}

void warps_and_atomics_count() {
  in_every_order([](const char* order) {
    const Buffer<int32_t> out(std::vector<int32_t>(5, 0));
    CHECK(launch(count, 2, 1, kThreads, 0, nullptr, out.data()) == Status::kOk, "%s", order);
    const int32_t sum = 2 * kThreads * (kThreads - 1) / 2;
    CHECK(out[0] == sum && out[1] == sum && out[2] == kThreads - 32 && out[3] == 0 && out[4] == sum,
          "%s: %d %d %d %d %d", order, out[0], out[1], out[2], out[3], out[4]);
  });
}

void tensor_cores_multiply() {
  std::vector<uint16_t> a(256), b(128);
  std::vector<float> wide_a(128), wide_b(64);
  for (int i = 0; i < 256; ++i) a[i] = from_float<BFloat16>(static_cast<float>(i * 37 % 64 - 31)).bits;
  for (int i = 0; i < 128; ++i) b[i] = from_float<BFloat16>(static_cast<float>(i * 29 % 32 - 15)).bits;
  for (int i = 0; i < 128; ++i) wide_a[i] = static_cast<float>(i * 37 % 512 - 255);
  for (int i = 0; i < 64; ++i) wide_b[i] = static_cast<float>(i * 29 % 512 - 255);
  const Buffer<uint16_t> in_a(a), in_b(b);
  const Buffer<float> in_wide_a(wide_a), in_wide_b(wide_b);
  in_every_order([&](const char* order) {
    Buffer<float> out(128), wide(128);
    CHECK(launch(multiply, 1, 1, 32, 0, nullptr, in_a.data(), in_b.data(), out.data()) == Status::kOk, "%s", order);
    CHECK(launch(multiply_tf32, 1, 1, 32, 0, nullptr, in_wide_a.data(), in_wide_b.data(), wide.data()) == Status::kOk,
          "%s", order);
    for (int i = 0; i < 128; ++i) {
      float expected = 0.0f, expected_wide = 0.0f;
      for (int k = 0; k < 16; ++k)
        expected += to_float(BFloat16{a[i / 8 * 16 + k]}) * to_float(BFloat16{b[k * 8 + i % 8]});
      for (int k = 0; k < 8; ++k) expected_wide += wide_a[i / 8 * 8 + k] * wide_b[k * 8 + i % 8];
      CHECK(out[i] == expected, "%s, bf16 %d: %g, %g expected", order, i, static_cast<double>(out[i]),
            static_cast<double>(expected));
      CHECK(wide[i] == expected_wide, "%s, tf32 %d: %g, %g expected", order, i, static_cast<double>(wide[i]),
            static_cast<double>(expected_wide));
    }
  });
}

#if !defined(__SANITIZE_ADDRESS__)  // which would end the program at the write itself
__global__ void write_past(float* out, bool in_shared) {
  if (in_shared)
    shared<Line>().values[kThreads + threadIdx.x] = 1;
  else
    out[kThreads + threadIdx.x] = 1.0f;
}

void red_zones_notice_writes() {
  {
    const Buffer<float> out(kThreads);
    launch(write_past, 1, 1, kThreads, 0, nullptr, out.data(), false);
  }
  CHECK(simt::take_error().find("past a buffer") != std::string::npos, "global");
  const Buffer<float> out(kThreads);
  launch(write_past, 1, 1, kThreads, 0, nullptr, out.data(), true);
  CHECK(simt::take_error().find("shared memory") != std::string::npos, "shared");
}
#else
void red_zones_notice_writes() {}
#endif

}  // namespace
}  // namespace geoloc_fast::cuda

int main() {
  using namespace geoloc_fast;
  cuda::barriers_order_shared_memory();
  cuda::asynchronous_copies_land_late();
  cuda::misbehaviour_is_named();
  cuda::warps_and_atomics_count();
  cuda::tensor_cores_multiply();
  cuda::red_zones_notice_writes();
  return tests::failures();
}
