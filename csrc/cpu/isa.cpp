// SPDX-License-Identifier: Apache-2.0
#include "cpu/isa.h"

#include <atomic>

namespace geoloc_fast::cpu {
namespace {

constexpr const char* kNames[kIsaCount] = {"baseline", "avx2", "avx512", "avx512bf16"};
std::atomic<int> chosen{-1};

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const char* isa_problem(Isa isa) {
  if (isa == Isa::kBaseline) return "";
#if defined(GEOLOC_FAST_X86_KERNELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == Isa::kAvx2) return avx2 ? "" : "this CPU has no AVX2 with FMA";
  if (isa == Isa::kAvx512) return avx512 ? "" : "this CPU has no AVX-512 (F, BW, VL, DQ)";
  return avx512 && __builtin_cpu_supports("avx512bf16") ? "" : "this CPU has no AVX-512 with bf16";
#else
  return "this build is not for x86-64";
#endif
}

Isa best_isa() {
  for (int isa = kIsaCount - 1; isa > 0; --isa)
    if (isa_problem(static_cast<Isa>(isa))[0] == '\0') return static_cast<Isa>(isa);
  return Isa::kBaseline;
}

Isa current_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    isa = static_cast<int>(best_isa());
    chosen.store(isa, std::memory_order_relaxed);
  }
  return static_cast<Isa>(isa);
}

void set_current_isa(Isa isa) { chosen.store(static_cast<int>(isa), std::memory_order_relaxed); }

}  // namespace geoloc_fast::cpu
