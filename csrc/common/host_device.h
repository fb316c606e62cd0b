// Code that both a CPU and a CUDA compiler read.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#ifdef __CUDACC__
#define GEOLOC_FAST_HD __host__ __device__ __forceinline__
#else
#define GEOLOC_FAST_HD inline
#endif
