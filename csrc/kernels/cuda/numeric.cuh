// The element types, and the ways between them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace rome_fast {

using BFloat16 = __nv_bfloat16;
using Half = __half;

// The type that T is computed in.
template <class T>
struct ComputeOf {
  using type = float;
};

template <>
struct ComputeOf<double> {
  using type = double;
};

template <class T>
using Compute = typename ComputeOf<T>::type;

__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(BFloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(Half x) { return __half2float(x); }

// Exact where To is no narrower than what T is computed in.
template <class To, class T>
__device__ __forceinline__ To widen(T x) {
  return static_cast<To>(widen(x));
}

// Rounds to nearest, ties to even; beyond the range it is infinite, as in torch.
template <class T>
__device__ __forceinline__ T narrow(Compute<T> x) {
  return x;
}

template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <>
__device__ __forceinline__ Half narrow<Half>(float x) {
  return __float2half_rn(x);
}

}  // namespace rome_fast
