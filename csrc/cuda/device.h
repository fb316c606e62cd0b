// What kernels reach the GPU by, beyond plain C++. Two bodies: this one for nvcc, and tests/simt/device.h for the
// emulator, which compiles the same kernels with any C++ compiler. A kernel source includes nothing of CUDA's itself.
// SPDX-License-Identifier: Apache-2.0
//
// Also there on both sides, under CUDA's own names: threadIdx, blockIdx, blockDim, gridDim (x; blocks are
// one-dimensional), uint2, uint4, float2, float4, __global__, __device__, __host__, __forceinline__, __launch_bounds__,
// __restrict__, fmaf, fminf, fmaxf, rintf, rsqrtf, __fsqrt_rn, sincospif, __popc, __ffs, __clz, __float_as_uint,
// __uint_as_float. Not there: `__shared__` (say shared<T>()) and whatever else would escape the emulator's checks.
#pragma once
#include <cstdint>

#include "geoloc_fast/types.h"

#if defined(GEOLOC_FAST_SIMT)
#include GEOLOC_FAST_SIMT  // the emulator's device.h: nothing here depends on the tests
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <type_traits>

#define GEOLOC_FAST_NOINLINE __noinline__

namespace geoloc_fast::cuda {

using Stream = cudaStream_t;
using half_t = __half;
using bf16_t = __nv_bfloat16;

constexpr uint32_t kWholeWarp = 0xffffffffu;

__device__ __forceinline__ float to_float(uint8_t value) { return static_cast<float>(value); }
__device__ __forceinline__ float to_float(half_t value) { return __half2float(value); }
__device__ __forceinline__ float to_float(bf16_t value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(float value) { return value; }

// One rounding to nearest even; a uint8 is clamped, and 0 for NaN.
__device__ __forceinline__ void set(uint8_t* out, float value) {
  *out = static_cast<uint8_t>(fminf(fmaxf(rintf(value), 0.0f), 255.0f));  // fmaxf(NaN, 0) is 0
}
__device__ __forceinline__ void set(half_t* out, float value) { *out = __float2half_rn(value); }
__device__ __forceinline__ void set(bf16_t* out, float value) { *out = __float2bfloat16_rn(value); }
__device__ __forceinline__ void set(float* out, float value) { *out = value; }

__device__ __forceinline__ uint32_t bf16_bits(float value) {
  return static_cast<uint32_t>(__bfloat16_as_ushort(__float2bfloat16_rn(value)));
}

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x & 31u); }

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// All lanes of a warp take part in what follows. T is 4 or 8 bytes.
template <typename T>
__device__ __forceinline__ T shuffle(T value, int from_lane) {
  return __shfl_sync(kWholeWarp, value, from_lane);
}
template <typename T>
__device__ __forceinline__ T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(kWholeWarp, value, lane_mask);
}
template <typename T>
__device__ __forceinline__ T shuffle_down(T value, int distance) {
  return __shfl_down_sync(kWholeWarp, value, static_cast<unsigned>(distance));
}
template <typename T>
__device__ __forceinline__ T shuffle_up(T value, int distance) {
  return __shfl_up_sync(kWholeWarp, value, static_cast<unsigned>(distance));
}
__device__ __forceinline__ uint32_t ballot(bool vote) { return __ballot_sync(kWholeWarp, vote); }
__device__ __forceinline__ bool any(bool vote) { return __any_sync(kWholeWarp, vote) != 0; }
__device__ __forceinline__ bool all(bool vote) { return __all_sync(kWholeWarp, vote) != 0; }

// All return what was there before. T: int32_t, uint32_t, unsigned long long; float and double for add.
template <typename T>
__device__ __forceinline__ T atomic_add(T* at, T value) {
  return atomicAdd(at, value);
}
template <typename T>
__device__ __forceinline__ T atomic_max(T* at, T value) {
  return atomicMax(at, value);
}
template <typename T>
__device__ __forceinline__ T atomic_min(T* at, T value) {
  return atomicMin(at, value);
}
template <typename T>
__device__ __forceinline__ T atomic_or(T* at, T value) {
  return atomicOr(at, value);
}
template <typename T>
__device__ __forceinline__ T atomic_cas(T* at, T expected, T value) {
  return atomicCAS(at, expected, value);
}
template <typename T>
__device__ __forceinline__ T atomic_exchange(T* at, T value) {
  return atomicExch(at, value);
}
// What this thread wrote is there for whoever sees what it writes after this.
__device__ __forceinline__ void fence_device() { __threadfence(); }
// A value that other blocks change.
template <typename T>
__device__ __forceinline__ T load_changing(const T* at) {
  return *static_cast<const volatile T*>(at);
}

// One aligned access of sizeof(T) bytes (T: uint2, uint4, float2, float4, ...). `_once`: read-only data that nobody
// reads again soon, so that it should not displace what is.
template <typename T>
__device__ __forceinline__ T load_vector(const void* at) {
  return *static_cast<const T*>(at);
}
template <typename T>
__device__ __forceinline__ T load_once(const void* at) {
  return __ldcs(static_cast<const T*>(at));
}
template <typename T>
__device__ __forceinline__ void store_vector(void* at, T value) {
  *static_cast<T*>(at) = value;
}

// Shared memory: one object of type T a block (asking again gives the same one), and what the launch asked for
// besides. T is made of arrays of plain numbers and begins as poison.
template <typename T>
__device__ __forceinline__ T& shared() {
  __shared__ __align__(16) unsigned char bytes[sizeof(T)];
  return *reinterpret_cast<T*>(bytes);
}
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char geoloc_fast_dynamic_shared[];
  return reinterpret_cast<T*>(geoloc_fast_dynamic_shared);
}

// 16 bytes from global to shared memory, both aligned to 16, zeros if not `present`. There once the thread has waited
// for the group; for other threads after a barrier beyond that.
__device__ __forceinline__ void copy_async16(void* to_shared, const void* from, bool present = true) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
  const int bytes = present ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the latest `kGroups` groups of this thread have landed.
template <int kGroups>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// d += a b, with a 16 x K and b K x 8. In lane l, with g = l / 4 and t = l % 4:
//   d[0], d[1]: row g, columns 2t, 2t+1; d[2], d[3]: row g + 8
//   bf16, K = 16 (two values a register): a[0] row g, k = 2t, 2t+1; a[1] row g + 8; a[2], a[3] the same at k + 8;
//                                         b[0] column g, k = 2t, 2t+1; b[1] at k + 8
//   tf32, K = 8 (one value a register):   a[0] row g, k = t; a[1] row g + 8; a[2], a[3] the same at k + 4;
//                                         b[0] column g, k = t; b[1] at k + 4
// The tensor cores use only the upper 19 bits of what is given as tf32.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Launches on `stream`, without waiting and without allocating. kBadSize: a grid that no GPU takes.
template <typename... Params>
Status launch(void (*kernel)(Params...), int64_t blocks_x, int64_t blocks_y, int threads, int64_t shared_bytes,
              Stream stream, const std::common_type_t<Params>&... params) {
  if (blocks_x == 0 || blocks_y == 0) return Status::kOk;
  if (blocks_x > 0x7fffffff || blocks_y > 65535) return Status::kBadSize;
  if (shared_bytes > (48 << 10) && cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                        static_cast<int>(shared_bytes)) != cudaSuccess)
    return Status::kLaunchFailed;
  const dim3 grid(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  // Its own answer, not the last error: that may be somebody else's.
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))...};
  return cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), arguments,
                          static_cast<size_t>(shared_bytes), stream) == cudaSuccess
             ? Status::kOk
             : Status::kLaunchFailed;
}
// Bytes set to `value` on `stream`.
inline Status fill_bytes(void* at, int value, int64_t bytes, Stream stream) {
  if (bytes == 0) return Status::kOk;
  return cudaMemsetAsync(at, value, static_cast<size_t>(bytes), stream) == cudaSuccess ? Status::kOk
                                                                                       : Status::kLaunchFailed;
}

}  // namespace geoloc_fast::cuda
#endif

namespace geoloc_fast::cuda {

// Sums over a warp, in one order, there on every lane.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
  return value;
}

}  // namespace geoloc_fast::cuda
