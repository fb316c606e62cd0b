// gumbel_noise: standard Gumbel noise, as much as is asked for, from one seed.
// SPDX-License-Identifier: Apache-2.0
//
//   out[n] = -ln(-ln u_n),   u_n = ((x_n >> 9) + 1/2) / 2^23   in (0, 1)
//   x_n = word (n mod 64) / 16 of Philox-4x32-10 at counter (16 (n / 64) + n mod 16, 0, 0) with key = seed
//
// (sixteen counters lie in the lanes of a vector, so a block of 64 values is four vectors). Counter-based: the same
// values for any number of threads and instruction set, but for the last bits of the logarithms. Between -2.8 and 16.6.
// torch draws the exponentials for the same noise one after another: 14 to 40 ms a million, this takes below 1.
#pragma once
#include "geoloc_fast/types.h"

namespace geoloc_fast::cpu {
void gumbel_noise(uint64_t seed, float* out, int64_t count, int threads);
}
namespace geoloc_fast::cuda {
Status gumbel_noise(const int64_t* seed, float* out, int64_t count, int device, void* stream);  // all on the device
}
