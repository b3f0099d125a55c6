// One block: three passes over vectors, one after another, of which each needs the last one's sums.
//
// d_key = 16384 and d_value = 4096 in double are 0.6 MB through one multiprocessor, in 9 rounds of
// loads a pass: an estimated 10 us. Three kernels of many blocks would cost as much to launch.
#include "kernels/cuda/chosen.h"
#include "kernels/cuda/rank_one.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

constexpr int kThreads = 640;  // more of them, or of the batch, and registers spill
constexpr int kBatch = 3;      // loads of a vector on their way before the first use
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

// u = w / norm, and what the keys say of it; false if an element is not finite.
template <class Value>
__device__ bool find_u(const RankOneSolutionParams<Value>& p, double norm, double& denominator,
                       double& scale) {
  bool finite = true;
#pragma unroll 1
  for (int64_t first = threadIdx.x; first < p.d_key; first += kStep) {
    double w[kBatch], key[kBatch], denominator_key[kBatch];
    p.w.load(first, kThreads, p.d_key, w);
    p.key.load(first, kThreads, p.d_key, key);
    p.denominator_key.load(first, kThreads, p.d_key, denominator_key);
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int64_t i = first + n * kThreads;
      if (i >= p.d_key) break;
      // Rounded first: what is returned is what is written.
      const Value u = static_cast<Value>(w[n] / norm);
      p.u[i] = u;
      finite &= is_finite(u);
      denominator = __fma_rn(denominator_key[n], double(u), denominator);
      scale = __fma_rn(key[n], double(u), scale);
    }
  }
  return finite;
}

// v = residual / denominator, and its square; false if an element is not finite.
template <class Value>
__device__ bool find_v(const RankOneSolutionParams<Value>& p, double denominator, double& square) {
  bool finite = true;
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
  return finite;
}

template <class Value>
__global__ void __launch_bounds__(kThreads) find_update_kernel(RankOneSolutionParams<Value> p) {
  double* scratch = shared_storage<SolutionStorage>().scratch;
  double denominator = 0, scale = 0, square = 0;
  bool finite = find_u(p, norm(p.w, p.d_key, scratch), denominator, scale);
  denominator = block_sum(denominator, scratch);
  scale = block_sum(scale, scratch);
  finite &= find_v(p, denominator, square);
  const double update_norm = sqrt(block_sum(square, scratch));
  const bool all_finite = __syncthreads_and(finite);
  if (threadIdx.x != 0) return;
  *p.denominator = denominator;
  *p.update_norm = update_norm;
  *p.applied = all_finite && is_finite(denominator) && is_finite(update_norm) &&
               fabs(denominator) >= p.min_denominator * fabs(scale) && update_norm <= p.max_norm;
}

// One thread, in the order of the indices: what the other one is compared with.
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

template <class Value>
void rank_one_solution(const RankOneSolutionParams<Value>& params, cudaStream_t stream) {
  if (naive_is_chosen()) {
    launch(find_update_naive_kernel<Value>, dim3(1), dim3(1), 0, stream, params);
    return;
  }
  launch(find_update_kernel<Value>, dim3(1), dim3(kThreads), sizeof(SolutionStorage), stream,
         params);
}

template void rank_one_solution(const RankOneSolutionParams<float>&, cudaStream_t);
template void rank_one_solution(const RankOneSolutionParams<double>&, cudaStream_t);

}  // namespace rome_fast
