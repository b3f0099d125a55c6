// Every instruction that CUDA C++ has no name for. Nothing else holds inline assembly.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rome_fast {

// What was written before store_release by the thread that wrote the flag (and, after a barrier, by
// its block) is seen by who reads the flag with load_acquire. To wait is to call it in a loop.
__device__ __forceinline__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// For a value that says by itself whether it is there, and orders nothing else.
__device__ __forceinline__ unsigned long long load_relaxed(const unsigned long long* at) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}

__device__ __forceinline__ void store_relaxed(unsigned long long* at, unsigned long long value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

}  // namespace rome_fast
