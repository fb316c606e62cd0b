// What this machine can do at most: read and copy bandwidth, and float32 and bfloat16 multiply-adds, each on
// `threads` threads. Prints JSON. Built by bench/limits.py with -O3 -march=native; never installed.
// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

namespace {

double seconds_of(int threads, const std::function<void(int)>& work) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(work, t);
  work(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

template <typename Once>
double best_rate(int repeats, double amount, const Once& once) {
  double best = 0;
  for (int i = 0; i < repeats; ++i) best = std::max(best, amount / once());
  return best;
}

volatile float sink;

typedef float f32x16 __attribute__((vector_size(64)));

// Twelve independent chains in registers hide the latency of the multiply-add.
void fma_loop(long steps) {
  f32x16 sum[12] = {};
  const f32x16 a = f32x16{} + 1.0000001f, b = f32x16{} + 0.9999999f;
  for (long i = 0; i < steps; ++i)
    for (int k = 0; k < 12; ++k) {
      sum[k] = sum[k] * a + b;
      asm volatile("" : "+v"(sum[k]));
    }
  for (int k = 1; k < 12; ++k) sum[0] += sum[k];
  sink = sum[0][0];
}

#ifdef __AVX512BF16__
void bf16_loop(long steps) {
  __m512 sum[12];
  for (auto& s : sum) s = _mm512_setzero_ps();
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803f80), b = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  for (long i = 0; i < steps; ++i)
    for (int k = 0; k < 12; ++k) {
      sum[k] = _mm512_dpbf16_ps(sum[k], a, b);
      asm volatile("" : "+v"(sum[k]));
    }
  for (int k = 1; k < 12; ++k) sum[0] = _mm512_add_ps(sum[0], sum[k]);
  sink = _mm512_reduce_add_ps(sum[0]);
}
#endif

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  const size_t bytes = size_t{1} << 28;  // far beyond the last cache
  const size_t share = bytes / threads / 64 * 64;
  char* from = static_cast<char*>(std::aligned_alloc(64, bytes));
  char* to = static_cast<char*>(std::aligned_alloc(64, bytes));
  std::memset(from, 1, bytes);
  std::memset(to, 2, bytes);

  const double read = best_rate(8, double(share) * threads, [&] {
    return seconds_of(threads, [&](int t) {
      const f32x16* data = reinterpret_cast<const f32x16*>(from + t * share);
      f32x16 sum[4] = {};
      for (size_t i = 0; i + 4 <= share / 64; i += 4)
        for (int k = 0; k < 4; ++k) sum[k] += data[i + k];
      sink = (sum[0] + sum[1] + sum[2] + sum[3])[0];
    });
  });
  const double copy = best_rate(8, 2.0 * double(share) * threads, [&] {
    return seconds_of(threads, [&](int t) { std::memcpy(to + t * share, from + t * share, share); });
  });
  const long steps = 20000000;
  const double flops = 2.0 * 16 * 12 * double(steps) * threads;
  const double fp32 = best_rate(3, flops, [&] { return seconds_of(threads, [&](int) { fma_loop(steps); }); });
  double bf16 = 0;
#ifdef __AVX512BF16__
  bf16 = best_rate(3, 2 * flops, [&] { return seconds_of(threads, [&](int) { bf16_loop(steps); }); });
#endif
  std::printf("{\"threads\": %d, \"read_gb_s\": %.2f, \"copy_gb_s\": %.2f, \"fp32_gflop_s\": %.1f, \"bf16_gflop_s\": %.1f}\n",
              threads, read / 1e9, copy / 1e9, fp32 / 1e9, bf16 / 1e9);
}
