// Code that both a CPU and a CUDA compiler read.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#ifdef __CUDACC__
#define GEOLOC_FAST_HD __host__ __device__ __forceinline__
#else
// Internal linkage: kernel sources are compiled once per instruction set and may not share a function.
#define GEOLOC_FAST_HD static inline
#endif
