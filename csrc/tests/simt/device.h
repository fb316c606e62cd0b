// The emulator's body of cuda/device.h: same names, same meaning.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/half.h"
#include "tests/simt/simt.h"

#define __global__ [[maybe_unused]] static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define GEOLOC_FAST_NOINLINE

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
constexpr uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
constexpr uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline float rsqrtf(float value) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(value))); }
inline float __fsqrt_rn(float value) { return std::sqrt(value); }
inline void sincospif(float half_turns, float* sine, float* cosine) {
  const double angle = 3.14159265358979323846 * static_cast<double>(half_turns);
  *sine = static_cast<float>(std::sin(angle));
  *cosine = static_cast<float>(std::cos(angle));
}
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __ffs(uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __clz(uint32_t bits) { return bits ? __builtin_clz(bits) : 32; }
inline uint32_t __float_as_uint(float value) { return geoloc_fast::half_detail::as_bits(value); }
inline float __uint_as_float(uint32_t bits) { return geoloc_fast::half_detail::as_float(bits); }

namespace geoloc_fast::cuda {

using Stream = void*;
using half_t = Float16;
using bf16_t = BFloat16;
using geoloc_fast::to_float;

constexpr uint32_t kWholeWarp = 0xffffffffu;

template <typename T>
void set(T* out, float value) {
  *out = from_float<T>(value);
}
inline uint32_t bf16_bits(float value) { return from_float<BFloat16>(value).bits; }

inline int lane_id() { return simt::lane_id(); }
inline void sync_block() { simt::sync_block(); }
inline void sync_warp() { simt::collective("__syncwarp", kWholeWarp, nullptr, nullptr); }

namespace detail {
template <typename T>
struct Exchange {
  T value;
  int from_lane;
};
// A lane outside the warp: the lane's own value.
template <typename T>
T exchange(T value, int from_lane) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  Exchange<T> mine{value, from_lane};
  simt::collective("shuffle", kWholeWarp, &mine, [](void* const* lanes, uint32_t) {
    T values[32];
    for (int lane = 0; lane < 32; ++lane) values[lane] = static_cast<Exchange<T>*>(lanes[lane])->value;
    for (int lane = 0; lane < 32; ++lane) {
      Exchange<T>& it = *static_cast<Exchange<T>*>(lanes[lane]);
      it.value = values[it.from_lane >= 0 && it.from_lane < 32 ? it.from_lane : lane];
    }
  });
  return mine.value;
}
}  // namespace detail

template <typename T>
T shuffle(T value, int from_lane) {
  return detail::exchange(value, from_lane & 31);
}
template <typename T>
T shuffle_xor(T value, int lane_mask) {
  return detail::exchange(value, lane_id() ^ lane_mask);
}
template <typename T>
T shuffle_down(T value, int distance) {
  return detail::exchange(value, lane_id() + distance);
}
template <typename T>
T shuffle_up(T value, int distance) {
  return detail::exchange(value, lane_id() - distance);
}
inline uint32_t ballot(bool vote) {
  uint32_t mine = vote;
  simt::collective("vote", kWholeWarp, &mine, [](void* const* lanes, uint32_t) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= *static_cast<uint32_t*>(lanes[lane]) << lane;
    for (int lane = 0; lane < 32; ++lane) *static_cast<uint32_t*>(lanes[lane]) = votes;
  });
  return mine;
}
inline bool any(bool vote) { return ballot(vote) != 0; }
inline bool all(bool vote) { return ballot(vote) == kWholeWarp; }

namespace detail {
template <typename T, typename Change>
T atomically(T* at, Change change) {
  simt::maybe_yield();
  simt::check_access(at, sizeof(T), "an atomic");
  const T before = *at;
  *at = change(before);
  return before;
}
}  // namespace detail
template <typename T>
T atomic_add(T* at, T value) {
  return detail::atomically(at, [=](T before) { return static_cast<T>(before + value); });
}
template <typename T>
T atomic_max(T* at, T value) {
  return detail::atomically(at, [=](T before) { return std::max(before, value); });
}
template <typename T>
T atomic_min(T* at, T value) {
  return detail::atomically(at, [=](T before) { return std::min(before, value); });
}
template <typename T>
T atomic_or(T* at, T value) {
  return detail::atomically(at, [=](T before) { return before | value; });
}
template <typename T>
T atomic_cas(T* at, T expected, T value) {
  return detail::atomically(at, [=](T before) { return before == expected ? value : before; });
}
template <typename T>
T atomic_exchange(T* at, T value) {
  return detail::atomically(at, [=](T) { return value; });
}
inline void fence_device() {}
template <typename T>
T load_changing(const T* at) {
  simt::maybe_yield();
  return *at;
}

template <typename T>
T load_vector(const void* at) {
  simt::check_access(at, sizeof(T), "a load");
  return *static_cast<const T*>(at);
}
template <typename T>
T load_once(const void* at) {
  return load_vector<T>(at);
}
template <typename T>
void store_vector(void* at, T value) {
  simt::check_access(at, sizeof(T), "a store");
  *static_cast<T*>(at) = value;
}

template <typename T>
T& shared() {
  static const char key = 0;
  bool is_new;
  return *static_cast<T*>(
      simt::static_shared(&key, sizeof(T), alignof(T) > 16 ? int64_t{alignof(T)} : int64_t{16}, &is_new));
}
template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(simt::dynamic_shared());
}

inline void copy_async16(void* to_shared, const void* from, bool present = true) {
  simt::copy_async(to_shared, present ? from : nullptr, 16);
}
inline void copy_async_commit() { simt::copy_async_commit(); }
template <int kGroups>
void copy_async_wait() {
  simt::copy_async_wait(kGroups);
}

namespace detail {
struct Product {
  float* d;
  const uint32_t *a, *b;
};
// Sums are exact but for one rounding towards zero: no tensor core is further off than what kernels must allow for.
template <int kDepth, typename Value>
void multiply(void* const* lanes, Value value) {
  float a[16][kDepth], b[kDepth][8];
  constexpr int kPer = kDepth / 8;  // values a register
  for (int lane = 0; lane < 32; ++lane) {
    const Product& mine = *static_cast<Product*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < kPer; ++i) {
      for (int r = 0; r < 4; ++r) a[g + 8 * (r % 2)][kPer * t + i + kDepth / 2 * (r / 2)] = value(mine.a[r], i);
      for (int r = 0; r < 2; ++r) b[kPer * t + i + kDepth / 2 * r][g] = value(mine.b[r], i);
    }
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      float& d = static_cast<Product*>(lanes[lane])->d[i];
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = static_cast<double>(d);
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
      d = static_cast<float>(sum);
      if (std::fabs(static_cast<double>(d)) > std::fabs(sum)) d = std::nextafter(d, 0.0f);
    }
}
}  // namespace detail

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  detail::Product mine{d, a, b};
  simt::collective("mma", kWholeWarp, &mine, [](void* const* lanes, uint32_t) {
    detail::multiply<16>(lanes,
                         [](uint32_t word, int i) { return __uint_as_float(i ? word & 0xffff0000u : word << 16); });
  });
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  detail::Product mine{d, a, b};
  simt::collective("mma", kWholeWarp, &mine, [](void* const* lanes, uint32_t) {
    detail::multiply<8>(lanes, [](uint32_t word, int) { return __uint_as_float(word & 0xffffe000u); });
  });
}

template <typename... Params>
Status launch(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int threads, int64_t shared_bytes, Stream,
              const std::common_type_t<Params>&... params) {
  if (blocks_x == 0 || blocks_y == 0) return Status::kOk;
  if (blocks_x > 0x7fffffff || blocks_y > 65535) return Status::kBadSize;
  const dim3 grid(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  return simt::run(grid, threads, shared_bytes, [&] { kernel(params...); }) ? Status::kOk : Status::kLaunchFailed;
}
inline Status fill_bytes(void* at, int value, int64_t bytes, Stream) {
  if (bytes != 0) std::memset(at, value, static_cast<size_t>(bytes));
  return Status::kOk;
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
  bool ok() const { return true; }
};

}  // namespace geoloc_fast::cuda
