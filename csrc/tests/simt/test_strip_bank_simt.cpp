// Packing, unpacking and scoring on the GPU, in the emulator: the very bytes that the CPU gives.
// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <memory>
#include <string>

#include "geoloc_fast/strip_score.h"
#include "tests/simt/bank.h"

namespace geoloc_fast {
namespace {

using simt::Buffer;
using simt::Memory;

template <typename T>
int64_t different(const T* a, const T* b, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i)
    count += std::memcmp(a + i, b + i, sizeof(T)) != 0 && !(a[i] != a[i] && b[i] != b[i]);  // NaN is NaN
  return count;
}

void ran(Status status, const char* what, const simt::Bank& bank) {
  const std::string error = simt::take_error();
  CHECK(status == Status::kOk && error.empty(), "%s K %ld W %ld: %s", what, static_cast<long>(bank.view.values),
        static_cast<long>(bank.view.columns), error.c_str());
}

void pack_unpack_score(int64_t count, int64_t values, int64_t columns, bool bf16) {
  std::vector<float> strips = simt::random_values(count * values * columns, 1);
  const int64_t one = values * columns;
  for (int64_t i = 0; i < one; ++i) strips[i + one] = 0.0f, strips[i + 2 * one] = strips[i % columns];
  strips[3 * one] = NAN;
  const simt::Bank bank(strips, count, values, columns, bf16);
  const Buffer<float> device_strips(strips);

  const Buffer<uint8_t> packed(bank.blocks.size());
  const Buffer<double> pack_space(cuda::strip_pack_workspace(bank.view) / 8);
  ran(cuda::strip_pack(bank.view, packed.data(), device_strips.data(), bank.circle.data(), pack_space.data(), 0,
                       nullptr),
      "pack", bank);
  const int64_t wrong = different(reinterpret_cast<const uint32_t*>(packed.data()),
                                  reinterpret_cast<const uint32_t*>(bank.blocks.data()), packed.size() / 4);
  // The NaN's sign may differ.
  CHECK(wrong <= 16 * (one + columns), "pack: %ld words differ", static_cast<long>(wrong));
  for (int64_t i = 0; i < packed.size(); ++i)
    if (i % 64 / 4 != 3 && packed[i] != bank.blocks[i]) {
      CHECK(false, "pack K %ld W %ld: byte %ld differs", static_cast<long>(values), static_cast<long>(columns),
            static_cast<long>(i));
      break;
    }

  std::vector<int64_t> rows;
  for (int64_t r = count - 1; r >= 0; --r) rows.push_back(r);
  std::vector<float> columns_expected(static_cast<size_t>(count * one));
  const Memory unpack_host(cpu::strip_unpack_workspace(columns, 1));
  CHECK(cpu::strip_unpack(bank.view, rows.data(), count, columns_expected.data(), bank.circle.data(), unpack_host, 1) ==
        Status::kOk);
  rows.push_back(count), rows.push_back(-1);
  const Buffer<int64_t> device_rows(rows);
  const Buffer<float> out((count + 2) * one);
  const Buffer<double> unpack_space(cuda::strip_unpack_workspace(bank.view, count + 2) / 8);
  ran(cuda::strip_unpack(bank.view, device_rows.data(), count + 2, out.data(), bank.circle.data(), unpack_space.data(),
                         0, nullptr),
      "unpack", bank);
  CHECK(different(out.data(), columns_expected.data(), count * one) == 0, "unpack K %ld W %ld",
        static_cast<long>(values), static_cast<long>(columns));
  for (int64_t i = count * one; i < out.size(); ++i) CHECK(std::isnan(out[i]), "a row outside the bank");

  const int64_t batch = 4, padded = (2 * columns + 2) / 3;
  std::vector<float> query = simt::random_values(batch * values * padded, 2);
  for (int64_t i = 0; i < values * padded; ++i) query[values * padded + i] = 0.0f;
  query[3 * values * padded] = INFINITY;
  const std::vector<int64_t> width = {padded, 1, (padded + 1) / 2, 1};
  std::vector<int64_t> index;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t r = -1; r < count; ++r) index.push_back((r + 3 * b + 1) % (count + 1) - 1);
  const Buffer<float> device_query(query);
  const Buffer<int64_t> device_width(width), device_index(index);
  for (const int form : {0, 1, 2}) {
    const bool cosine = form == 1;
    StripScoreParams p{};
    p.dot = form == 2;
    p.bank = bank.view, p.query = device_query.data(), p.width = device_width.data();
    p.batch = batch, p.padded_width = padded, p.cosine = cosine, p.circle = bank.circle.data();
    p.index = device_index.data(), p.n = count + 1;
    std::vector<float> score(index.size());
    std::vector<int64_t> shift(index.size());
    const Memory host(cpu::strip_score_workspace(batch, values, columns, padded, 1));
    p.score = score.data(), p.shift = shift.data(), p.workspace = host;
    CHECK(cpu::strip_score(p, 1) == Status::kOk);
    const Buffer<float> found(static_cast<int64_t>(score.size()));
    const Buffer<int64_t> at(static_cast<int64_t>(shift.size()));
    const Buffer<double> space(cuda::strip_score_workspace(bank.view, batch, p.n) / 8);
    p.score = found.data(), p.shift = at.data(), p.workspace = space.data();
    ran(cuda::strip_score(p, 0, nullptr), "score", bank);
    CHECK(
        different(found.data(), score.data(), found.size()) == 0 && different(at.data(), shift.data(), at.size()) == 0,
        "score K %ld W %ld bf16 %d form %d: %ld scores, %ld shifts differ", static_cast<long>(values),
        static_cast<long>(columns), bf16, form, static_cast<long>(different(found.data(), score.data(), found.size())),
        static_cast<long>(different(at.data(), shift.data(), at.size())));

    std::vector<float> curve(score.size() * static_cast<size_t>(columns));
    p.curve = curve.data(), p.score = nullptr, p.shift = nullptr, p.workspace = host;
    CHECK(cpu::strip_score(p, 1) == Status::kOk);
    const Buffer<float> found_curve(static_cast<int64_t>(curve.size()));
    p.curve = found_curve.data(), p.workspace = space.data();
    ran(cuda::strip_score(p, 0, nullptr), "curve", bank);
    CHECK(different(found_curve.data(), curve.data(), found_curve.size()) == 0, "curve K %ld W %ld bf16 %d",
          static_cast<long>(values), static_cast<long>(columns), bf16);
  }
}

}  // namespace
}  // namespace geoloc_fast

int main() {
  using namespace geoloc_fast;
  for (const simt::Order order : {simt::Order::kForward, simt::Order::kBackward, simt::Order::kRandom}) {
    simt::set_order(order, 2);
    for (const bool bf16 : {false, true}) {
      for (const int64_t columns : {1, 2, 7, 16, 20, 32}) pack_unpack_score(18, 5, columns, bf16);
      pack_unpack_score(5, 41, 16, bf16);
      pack_unpack_score(5, 64, 1, bf16);
      pack_unpack_score(5, 9, 64, bf16);
    }
  }
  return tests::failures();
}
