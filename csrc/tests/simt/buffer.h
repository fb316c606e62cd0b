// Memory of the emulated device: exactly as long as asked for, with a red zone on either side.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "tests/simt/simt.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace geoloc_fast::simt {

// As long as the buffer itself, so that an index off by a row or an image lands in it, within limits.
constexpr int64_t red_zone(int64_t bytes) {
  return ((bytes < 4096 ? 4096 : bytes < (1 << 20) ? bytes : (1 << 20)) + 255) / 256 * 256;
}
constexpr uint8_t kRed = 0xcb;

template <typename T>
class Buffer {
 public:
  // Poison: NaN for floats and 0xa5... for integers (-1 would often pass for an answer).
  explicit Buffer(int64_t count) : count_(count), bytes_(count * static_cast<int64_t>(sizeof(T))) {
    const int64_t red = red_zone(bytes_), total = (2 * red + bytes_ + 255) / 256 * 256;
    memory_ = static_cast<uint8_t*>(std::aligned_alloc(256, static_cast<size_t>(total)));
    after_ = total - red - bytes_;
    std::memset(memory_, kRed, static_cast<size_t>(total));
    std::memset(memory_ + red, std::is_integral_v<T> ? 0xa5 : kPoison, static_cast<size_t>(bytes_));
    ASAN_POISON_MEMORY_REGION(memory_, static_cast<size_t>(red));
    ASAN_POISON_MEMORY_REGION(memory_ + red + bytes_, static_cast<size_t>(after_));
    register_buffer(memory_ + red, bytes_);
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(static_cast<int64_t>(values.size())) {
    if (count_ > 0) std::memcpy(static_cast<void*>(data()), values.data(), static_cast<size_t>(bytes_));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    const int64_t red = red_zone(bytes_);
    ASAN_UNPOISON_MEMORY_REGION(memory_, static_cast<size_t>(red + bytes_ + after_));
    forget_buffer(memory_ + red);
    for (int64_t i = 0; i < red + after_; ++i)
      if (memory_[i < red ? i : i + bytes_] != kRed) {
        report("a write " + std::string(i < red ? "before" : "past") + " a buffer of " + std::to_string(bytes_) +
               " bytes");
        break;
      }
    std::free(memory_);
  }

  T* data() const { return reinterpret_cast<T*>(memory_ + red_zone(bytes_)); }
  int64_t size() const { return count_; }
  const T& operator[](int64_t i) const { return data()[i]; }
  std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }

 private:
  int64_t count_, bytes_, after_;
  uint8_t* memory_;
};

}  // namespace geoloc_fast::simt
