// Hands out pieces of a caller's work space; with no base it only adds up how much is needed.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>

namespace geoloc_fast {
namespace {  // each instruction set's build has its own

class WorkSpace {
 public:
  static constexpr int64_t kAlignment = 128;  // of every piece, counted from the base: a line of a GPU

  explicit WorkSpace(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

}  // namespace
}  // namespace geoloc_fast
