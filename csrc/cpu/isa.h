// Which instruction set the CPU kernels run with. A kernel source `<op>_kernel.cpp` is compiled once per
// instruction set, each time with other flags and with GEOLOC_FAST_ISA naming the namespace its code lives in;
// `<op>.cpp` picks the build that suits the machine at run time.
// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace geoloc_fast::cpu {

enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };
constexpr int kIsaCount = 4;

const char* isa_name(Isa isa);     // "baseline", "avx2", "avx512", "avx512bf16"
const char* isa_problem(Isa isa);  // empty string if this build and this machine can run it, else why not
Isa best_isa();                    // the widest that can run here
Isa current_isa();                 // what kernels use: best_isa() unless set
void set_current_isa(Isa isa);     // only with an empty isa_problem()

// Declares `Result function Arguments` in the namespace of every instruction set that was built.
#if defined(GEOLOC_FAST_X86_KERNELS)
#define GEOLOC_FAST_DECLARE_KERNEL(Result, function, Arguments) \
  namespace baseline {                                          \
  Result function Arguments;                                    \
  }                                                             \
  namespace avx2 {                                              \
  Result function Arguments;                                    \
  }                                                             \
  namespace avx512 {                                            \
  Result function Arguments;                                    \
  }                                                             \
  namespace avx512bf16 {                                        \
  Result function Arguments;                                    \
  }
// The pointer to `function` of one instruction set. A call that takes several kernels asks for the current
// instruction set once, since another thread may change it.
#define GEOLOC_FAST_KERNEL_OF(isa, function)         \
  ((isa) == Isa::kAvx512Bf16 ? &avx512bf16::function \
   : (isa) == Isa::kAvx512   ? &avx512::function     \
   : (isa) == Isa::kAvx2     ? &avx2::function       \
                             : &baseline::function)
#else
#define GEOLOC_FAST_DECLARE_KERNEL(Result, function, Arguments) \
  namespace baseline {                                          \
  Result function Arguments;                                    \
  }
#define GEOLOC_FAST_KERNEL_OF(isa, function) ((void)(isa), &baseline::function)
#endif
#define GEOLOC_FAST_PICK_KERNEL(function) GEOLOC_FAST_KERNEL_OF(current_isa(), function)

}  // namespace geoloc_fast::cpu
