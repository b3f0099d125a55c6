// Reductions over a block of whole warps, in an order that only depends on the block's size.
#pragma once

#include <cuda_runtime.h>

namespace rome_fast {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Every thread of the warp gets the result.
template <class T, class Combine>
__device__ __forceinline__ T warp_reduce(T value, const Combine& combine) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    value = combine(value, __shfl_xor_sync(kWholeWarp, value, bits));
  }
  return value;
}

// Every thread of the block gets the result. `scratch` is shared memory for kMaxWarps values, free
// again on return.
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, T neutral, const Combine& combine) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int n_warps = blockDim.x / kWarp;
  value = warp_reduce(value, combine);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  value = warp_reduce(lane < n_warps ? scratch[lane] : neutral, combine);
  __syncthreads();
  return value;
}

struct Sum {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce(value, Sum());
}

template <class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  return block_reduce(value, scratch, T(0), Sum());
}

}  // namespace rome_fast
