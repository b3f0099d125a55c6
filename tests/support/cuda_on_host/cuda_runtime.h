// CUDA's language and runtime on the host, as far as the kernels use them (see fibers.h).
#pragma once

#include <algorithm>
#include <math.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "fibers.h"

#define ROME_FAST_ON_HOST
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __grid_constant__
#define __constant__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (emulated::thread_idx)
#define blockIdx (emulated::block_idx)
#define blockDim (emulated::block_dim)
#define gridDim (emulated::grid_dim)
#define warpSize 32

using dim3 = emulated::Dim3;
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

struct cudaFuncAttributes {
  int maxThreadsPerBlock;
};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

#define ROME_FAST_VECTOR(T, name, n)      \
  struct alignas(sizeof(T) * n) name##n { \
    T x, y ROME_FAST_MEMBERS_##n;         \
  };                                      \
  inline name##n make_##name##n(ROME_FAST_PARAMETERS_##n(T)) { return ROME_FAST_VALUES_##n; }
#define ROME_FAST_MEMBERS_2
#define ROME_FAST_MEMBERS_4 , z, w
#define ROME_FAST_PARAMETERS_2(T) T x, T y
#define ROME_FAST_PARAMETERS_4(T) T x, T y, T z, T w
#define ROME_FAST_VALUES_2 {x, y}
#define ROME_FAST_VALUES_4 {x, y, z, w}
ROME_FAST_VECTOR(float, float, 2)
ROME_FAST_VECTOR(float, float, 4)
ROME_FAST_VECTOR(int, int, 2)
ROME_FAST_VECTOR(int, int, 4)
ROME_FAST_VECTOR(unsigned, uint, 2)
ROME_FAST_VECTOR(unsigned, uint, 4)
ROME_FAST_VECTOR(double, double, 2)
#undef ROME_FAST_VECTOR

using std::max;
using std::min;

// Barriers of the block. Those with a predicate return what all threads make of it.
inline void __syncthreads() {
  const char nothing = 0;
  emulated::exchange(nothing, 0, blockDim.x * blockDim.y * blockDim.z);
}
// What a thread that has returned would say is 0.
inline int __syncthreads_or(int predicate) {
  const unsigned n = blockDim.x * blockDim.y * blockDim.z;
  const int* all = emulated::exchange(predicate, 0, n);
  return std::any_of(all, all + n, [](int one) { return one != 0; });
}
inline int __syncthreads_and(int predicate) { return !__syncthreads_or(!predicate); }
inline int __syncthreads_count(int predicate) {
  const unsigned n = blockDim.x * blockDim.y * blockDim.z;
  const int* all = emulated::exchange(predicate, 0, n);
  return int(std::count_if(all, all + n, [](int one) { return one != 0; }));
}

namespace emulated {

inline unsigned lane() { return thread_in_block() % 32; }

// Of a whole warp; the kernels use no other masks.
template <class T>
const T* of_warp(unsigned mask, const T& mine) {
  if (mask != 0xffffffffu) fail("a mask that is not the whole warp's");
  return exchange(mine, thread_in_block() / 32 * 32, 32);
}

}  // namespace emulated

inline void __syncwarp(unsigned mask = 0xffffffffu) { emulated::of_warp(mask, char(0)); }
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  return emulated::of_warp(mask, value)[source & 31];
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return emulated::of_warp(mask, value)[(emulated::lane() ^ bits) & 31];
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const unsigned source = emulated::lane() + delta;
  return emulated::of_warp(mask, value)[source < 32 ? source : emulated::lane()];
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = emulated::lane();
  return emulated::of_warp(mask, value)[lane >= delta ? lane - delta : lane];
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const int* all = emulated::of_warp(mask, predicate);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned(all[i] != 0) << i;
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) == ~0u;
}

// Fibers are switched only where they wait, so that plain accesses are atomic.
template <class T>
T atomicAdd(T* at, T value) {
  return std::exchange(*at, *at + value);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}

// Compiled with -ffp-contract=off: nothing is fused that is not written so.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

template <class To, class From>
To emulated_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float x) { return emulated_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulated_bits<float>(x); }
inline int __float_as_int(float x) { return emulated_bits<int>(x); }
inline float __int_as_float(int x) { return emulated_bits<float>(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
