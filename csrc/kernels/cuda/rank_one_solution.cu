// Two kernels, as each needs the sums of the last one. w is read by every block of the first, which
// then has its norm without a barrier between blocks.
//
// d_key = 16384 in double is 128 KB, at 64 bytes a cycle 1 us from L2: with the rounds of loads,
// an estimated 5 us for u and 4 for v. One block for all of it would take 30: it is the latency of
// its loads, and 16384 divisions in double.
#include "kernels/cuda/chosen.h"
#include "kernels/cuda/rank_one.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

constexpr int kThreads = 512;
constexpr int kParts = kWarp;  // of u, a block each: a lane has the sums of one
constexpr int kBatch = 8;      // loads of a vector on their way before the first use
constexpr int64_t kStep = kBatch * kThreads;

struct SolutionStorage {
  double scratch[kMaxWarps];
};

__device__ __forceinline__ bool is_finite(double x) { return x - x == 0; }

__device__ double norm(const AnyVector& x, int64_t size, double* scratch) {
  double sum = 0;
#pragma unroll 1
  for (int64_t first = threadIdx.x; first < size; first += kStep) {
    double values[kBatch];
    x.load(first, kThreads, size, values);
#pragma unroll
    for (int n = 0; n < kBatch; ++n) sum = __fma_rn(values[n], values[n], sum);
  }
  return sqrt(block_sum(sum, scratch));
}

// A part of u = w / |w|, and what the keys say of it.
template <class Value>
__global__ void __launch_bounds__(kThreads) find_u_kernel(RankOneSolutionParams<Value> p) {
  double* scratch = shared_storage<SolutionStorage>().scratch;
  const double w_norm = norm(p.w, p.d_key, scratch);
  const int64_t size = (p.d_key + kParts - 1) / kParts;
  const int64_t begin = size * blockIdx.x, end = min(p.d_key, begin + size);
  double denominator = 0, scale = 0;
  bool finite = true;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    // Rounded first: what is returned is what is written.
    const Value u = static_cast<Value>(p.w.at(i) / w_norm);
    p.u[i] = u;
    finite &= is_finite(u);
    denominator = __fma_rn(p.denominator_key.at(i), double(u), denominator);
    scale = __fma_rn(p.key.at(i), double(u), scale);
  }
  denominator = block_sum(denominator, scratch);
  scale = block_sum(scale, scratch);
  const bool all_finite = __syncthreads_and(finite);
  if (threadIdx.x == 0) p.key_sums[blockIdx.x] = {denominator, scale, all_finite};
}

// v = residual / denominator, and whether all is well.
template <class Value>
__global__ void __launch_bounds__(kThreads) find_v_kernel(RankOneSolutionParams<Value> p) {
  double* scratch = shared_storage<SolutionStorage>().scratch;
  const KeySums part = p.key_sums[threadIdx.x % kWarp];
  const double denominator = warp_sum(part.denominator), scale = warp_sum(part.scale);
  bool finite = part.finite;
  double square = 0;
#pragma unroll 1
  for (int64_t first = threadIdx.x; first < p.d_value; first += kStep) {
    double residual[kBatch];
    p.residual.load(first, kThreads, p.d_value, residual);
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int64_t i = first + n * kThreads;
      if (i >= p.d_value) break;
      const Value v = static_cast<Value>(residual[n] / denominator);
      p.v[i] = v;
      finite &= is_finite(v);
      square = __fma_rn(double(v), double(v), square);
    }
  }
  const double update_norm = sqrt(block_sum(square, scratch));
  const bool all_finite = __syncthreads_and(finite);
  if (threadIdx.x != 0) return;
  *p.denominator = denominator;
  *p.update_norm = update_norm;
  *p.applied = all_finite && is_finite(denominator) && is_finite(update_norm) &&
               fabs(denominator) >= p.min_denominator * fabs(scale) && update_norm <= p.max_norm;
}

// One thread, in the order of the indices: what the others are compared with.
template <class Value>
__global__ void find_update_naive_kernel(RankOneSolutionParams<Value> p) {
  double square = 0, denominator = 0, scale = 0, norm = 0;
  bool finite = true;
  for (int64_t i = 0; i < p.d_key; ++i) square += p.w.at(i) * p.w.at(i);
  for (int64_t i = 0; i < p.d_key; ++i) {
    p.u[i] = static_cast<Value>(p.w.at(i) / sqrt(square));
    finite &= is_finite(p.u[i]);
    denominator += p.denominator_key.at(i) * double(p.u[i]);
    scale += p.key.at(i) * double(p.u[i]);
  }
  for (int64_t i = 0; i < p.d_value; ++i) {
    p.v[i] = static_cast<Value>(p.residual.at(i) / denominator);
    finite &= is_finite(p.v[i]);
    norm += double(p.v[i]) * double(p.v[i]);
  }
  *p.denominator = denominator;
  *p.update_norm = sqrt(norm);
  *p.applied = finite && is_finite(denominator) && is_finite(*p.update_norm) &&
               fabs(denominator) >= p.min_denominator * fabs(scale) && *p.update_norm <= p.max_norm;
}

}  // namespace

int64_t rank_one_solution_bytes() { return kParts * sizeof(KeySums); }

template <class Value>
void rank_one_solution(const RankOneSolutionParams<Value>& params, cudaStream_t stream) {
  if (naive_is_chosen()) {
    launch(find_update_naive_kernel<Value>, dim3(1), dim3(1), 0, stream, params);
    return;
  }
  launch(find_u_kernel<Value>, dim3(kParts), dim3(kThreads), sizeof(SolutionStorage), stream,
         params);
  launch(find_v_kernel<Value>, dim3(1), dim3(kThreads), sizeof(SolutionStorage), stream, params);
}

template void rank_one_solution(const RankOneSolutionParams<float>&, cudaStream_t);
template void rank_one_solution(const RankOneSolutionParams<double>&, cudaStream_t);

}  // namespace rome_fast
