// What an update does to each column (included by cholesky_update.cu): a scan in one block.
//
// d = 16384 is 16 tiles of 1024 columns. A root and two divisions of double in each thread are 1 us
// at 64 operations a cycle, the sums 0.4: an estimated 20 us in all. The next tile's elements are
// on their way meanwhile.
#pragma once

#include <cfloat>

#include "kernels/cuda/cholesky_update.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {

constexpr int kScanThreads = 1024;

template <class T>
constexpr double least_determinant() {
  return 64 * (sizeof(T) == 8 ? DBL_EPSILON : double(FLT_EPSILON));
}

struct ScanStorage {
  double of_warps[kMaxWarps];
  double roots[kScanThreads + 1];  // of the determinants, first the one before these columns
  double sum;
  int all_sound[kMaxWarps];
};

// Sums over the block up to and with each thread. There is a barrier in it, and another one has to
// come before it is called again.
__device__ __forceinline__ double sum_up_to(double mine, double* of_warps) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const double other = __shfl_up_sync(kWholeWarp, mine, distance);
    if (lane >= distance) mine += other;
  }
  if (lane == kWarp - 1) of_warps[warp] = mine;
  __syncthreads();
  double before = 0;
  for (int w = 0; w < warp; ++w) before += of_warps[w];
  return before + mine;
}

struct Column {
  double a;
  double diagonal;
};

template <class T>
__device__ __forceinline__ Column load_column(const CholeskyUpdateParams<T>& p, int64_t j) {
  if (j >= p.d) return {0.0, 0.0};
  return {p.a[j], static_cast<double>(p.factor[j * (p.row_stride + p.col_stride)])};
}

// One block: each thread has a column of 1024.
template <class T>
__global__ void __launch_bounds__(kScanThreads) find_steps_kernel(CholeskyUpdateParams<T> p) {
  ScanStorage& shared = shared_storage<ScanStorage>();
  const double sign = p.downdate ? -1.0 : 1.0;
  double sum = 0;  // |a|^2 before the tile's columns
  int sound = 1;
  Column next = load_column(p, threadIdx.x);
  for (int64_t first = 0; first < p.d; first += kScanThreads) {
    const int64_t j = first + threadIdx.x;
    const Column column = next;
    next = load_column(p, j + kScanThreads);
    const double sum_here = sum + sum_up_to(column.a * column.a, shared.of_warps);
    const double t = 1.0 + sign * sum_here, root = sqrt(t);
    if (threadIdx.x == 0) shared.roots[0] = sqrt(1.0 + sign * sum);
    shared.roots[threadIdx.x + 1] = root;
    if (threadIdx.x == kScanThreads - 1) shared.sum = sum_here;
    __syncthreads();
    sum = shared.sum;
    if (j >= p.d) continue;
    const double previous = shared.roots[threadIdx.x];
    p.steps[j] = {root / previous, sign * column.a / (root * previous), column.a};
    sound &= t > least_determinant<T>() && isfinite(t) && isfinite(column.diagonal);
  }
  const auto both = [](int x, int y) { return x & y; };
  sound = block_reduce(sound, shared.all_sound, 1, both);
  if (threadIdx.x == 0) *p.applied = sound;
}

}  // namespace rome_fast
