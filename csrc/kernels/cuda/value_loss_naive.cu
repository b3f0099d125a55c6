// The definition, a thread a row: what value_loss.cu is compared with.
#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/value_loss.h"

namespace rome_fast {
namespace {

template <class Logit>
__global__ void value_loss_naive_kernel(ValueLossParams<Logit> params) {
  using T = Compute<Logit>;
  const int64_t row = blockIdx.x, n = params.vocabulary;
  const Logit* logits = params.logits + row * params.row_stride;
  Logit* gradient = params.gradient + row * n;
  if (row < params.n_reads && params.edit_of_read[row] == params.n_edits) {
    for (int64_t i = 0; i < n; ++i) gradient[i] = narrow<Logit>(T(0));
    return;
  }
  T max = widen<T>(logits[0]), sum = 0;
  for (int64_t i = 1; i < n; ++i) max = widen<T>(logits[i]) > max ? widen<T>(logits[i]) : max;
  for (int64_t i = 0; i < n; ++i) sum += exp(widen<T>(logits[i]) - max);
  const T log_sum = max + log(sum);

  if (row < params.n_reads) {
    const int64_t target = params.target_ids[row];
    int count = 0, right = 1;
    for (int64_t i = 0; i < params.n_reads; ++i) {
      count += params.edit_of_read[i] == params.edit_of_read[row];
    }
    for (int64_t i = 0; i < n; ++i) {
      const T x = widen<T>(logits[i]), best = widen<T>(logits[target]);
      right &= i < target ? x < best : x <= best;
      gradient[i] = narrow<Logit>((exp(x - log_sum) - (i == target)) / count);
    }
    params.row_loss[row] = log_sum - widen<T>(logits[target]);
    params.row_right[row] = right;
    return;
  }
  const int64_t at = (row - params.n_reads) * n;
  const bool is_first = params.log_probs_init == nullptr;
  T kl = log_sum - log_sum;
  for (int64_t i = 0; i < n; ++i) {
    const T log_p = widen<T>(logits[i]) - log_sum, p = exp(log_p);
    if (is_first) params.log_probs_now[at + i] = log_p;
    if (!is_first && p != T(0)) kl += p * (log_p - params.log_probs_init[at + i]);
  }
  for (int64_t i = 0; i < n; ++i) {
    const T log_p = widen<T>(logits[i]) - log_sum, p = exp(log_p);
    T slope = p - p;
    if (!is_first && p != T(0)) {
      slope = static_cast<T>(params.kl_factor) * p * (log_p - params.log_probs_init[at + i] - kl);
    }
    gradient[i] = narrow<Logit>(slope);
  }
  params.row_loss[row] = kl;
}

template <class Logit>
__global__ void sum_rows_naive_kernel(ValueLossParams<Logit> params) {
  using T = Compute<Logit>;
  T sum = 0;
  int count = 0, n_right = 0;
  for (int64_t row = 0; row < params.n_reads; ++row) {
    if (params.edit_of_read[row] != blockIdx.x) continue;
    sum += params.row_loss[row];
    n_right += params.row_right[row];
    ++count;
  }
  params.losses[blockIdx.x] =
      sum / count + static_cast<T>(params.kl_factor) * params.row_loss[params.n_reads + blockIdx.x];
  params.right[blockIdx.x] = n_right == count;
}

}  // namespace

template <class Logit>
void value_loss_naive(const ValueLossParams<Logit>& params, cudaStream_t stream) {
  const auto n_rows = static_cast<unsigned>(params.n_reads + params.n_edits);
  const auto n_edits = static_cast<unsigned>(params.n_edits);
  launch(value_loss_naive_kernel<Logit>, dim3(n_rows), dim3(1), 0, stream, params);
  launch(sum_rows_naive_kernel<Logit>, dim3(n_edits), dim3(1), 0, stream, params);
}

template void value_loss_naive(const ValueLossParams<double>&, cudaStream_t);
template void value_loss_naive(const ValueLossParams<float>&, cudaStream_t);
template void value_loss_naive(const ValueLossParams<BFloat16>&, cudaStream_t);
template void value_loss_naive(const ValueLossParams<Half>&, cudaStream_t);

}  // namespace rome_fast
