// How Python hands a bank to either native module.
// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "bindings/arguments.h"
#include "geoloc_fast/strip_score.h"
#include "geoloc_fast/strip_topk.h"

namespace geoloc_fast::bindings {

// [count, K, W]
using BankSize = std::array<int64_t, 3>;

// Of sizes alone.
inline StripBankView view_of(const BankSize& size, bool bf16) {
  return strip_bank_view(nullptr, size[0], size[1], size[2], bf16);
}

// [batch, padded width] and one more size
inline StripTopkParams topk_params(const BankSize& size, bool bf16, int64_t batch, int64_t padded_width, int64_t k) {
  StripTopkParams p{};
  p.bank = view_of(size, bf16);
  p.batch = batch, p.padded_width = padded_width, p.k = k;
  return p;
}

// What every call begins with. The blocks must be all there, at an address that is a multiple of 64.
inline StripBankView read_bank(Arguments& a) {
  const BankSize size = a.sizes<3>("size");
  StripBankView view = view_of(size, a.flag("bf16"));
  view.blocks = a.values<const uint8_t>("blocks", (view.count + kStripLanes - 1) / kStripLanes * view.block_bytes);
  if (reinterpret_cast<uintptr_t>(view.blocks) % 64)
    throw std::invalid_argument(std::string(a.op) + ": blocks are not at a multiple of 64 bytes");
  return view;
}

struct StripPackParams {
  StripBankView bank;
  const float* strips;
  const double* circle;
  void* workspace;
};

struct StripUnpackParams : StripPackParams {
  const int64_t* index;
  int64_t n;
  float* out;
};

// What every call ends with.
template <typename Params>
void read_space(Arguments& a, Params& p) {
  p.circle = a.values<const double>("circle", 2 * p.bank.columns);
  p.workspace = a.workspace();
}

inline void read(Arguments& a, StripPackParams& p) {
  p.bank = read_bank(a);
  p.strips = a.values<const float>("strips", p.bank.count * p.bank.values * p.bank.columns);
  read_space(a, p);
}

inline void read(Arguments& a, StripUnpackParams& p) {
  p.bank = read_bank(a);
  std::array<int64_t, 1> rows;
  p.index = a.sized<const int64_t>("index", rows);
  p.n = rows[0];
  p.out = a.values<float>("out", p.n * p.bank.values * p.bank.columns);
  read_space(a, p);
}

// What scoring and searching begin with.
template <typename Params>
void read_query(Arguments& a, Params& p) {
  p.bank = read_bank(a);
  Sizes size;
  p.query = a.sized<const float>("query", size);
  if (size[1] * size[2] != p.bank.values) check(Status::kBadSize, a.op);
  p.batch = size[0], p.padded_width = size[3];
  p.width = a.optional<const int64_t>("query_width", p.batch);
  p.cosine = a.flag("cosine");
  p.dot = a.flag("dot");
}

inline void read(Arguments& a, StripScoreParams& p) {
  read_query(a, p);
  std::array<int64_t, 2> size;
  p.index = a.sized<const int64_t>("index", size);
  if (size[0] != p.batch) check(Status::kBadSize, a.op);
  p.n = size[1];
  p.score = a.optional<float>("score", p.batch * p.n);
  p.shift = a.optional<int64_t>("shift", p.batch * p.n);
  p.curve = a.optional<float>("curve", p.batch * p.n * p.bank.columns);
  read_space(a, p);
}

inline void read(Arguments& a, StripTopkParams& p) {
  read_query(a, p);
  p.k = a.whole("k");
  p.alive = a.optional<const bool>("alive", p.bank.count);
  p.group = a.optional<const int64_t>("group", p.bank.count);
  p.score = a.values<float>("score", p.batch * p.k);
  p.index = a.values<int64_t>("index", p.batch * p.k);
  p.shift = a.values<int64_t>("shift", p.batch * p.k);
  read_space(a, p);
}

}  // namespace geoloc_fast::bindings
