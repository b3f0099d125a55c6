// A block a row: one pass for the maximum, the sum of exponentials and the KL, one for the
// gradient.
//
// The rows are few (22 of an edit in 21 contexts), so a row is what one multiprocessor reads: 200
// KB of float32 for 50,257 words, 1 MB for 256 Ki. The second pass finds it in the L2 cache.
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/value_loss.h"

namespace rome_fast {
namespace {

constexpr int kThreads = 1024;
constexpr int kReduceThreads = 64;

// What a part of a row comes to: exponentials are taken relative to the part's maximum.
template <class T>
struct RowPart {
  T max;
  T sum;      // of e^(x - max)
  T product;  // of e^(x - max) (x - log_prob_init)
};

template <class T>
struct Storage {
  RowPart<T> parts[kMaxWarps];
  int counts[kMaxWarps];
};

template <class T>
__device__ __forceinline__ T lowest() {
  return -static_cast<T>(INFINITY);
}

// What is -inf adds nothing; a NaN makes the sum NaN.
template <class T>
__device__ __forceinline__ void add(RowPart<T>& part, T x, T log_prob_init) {
  if (x == lowest<T>()) return;
  if (x > part.max) {
    const T shrink = exp(part.max - x);
    part.sum *= shrink;
    part.product *= shrink;
    part.max = x;
  }
  const T e = exp(x - part.max);
  part.sum += e;
  if (e != T(0)) part.product += e * (x - log_prob_init);
}

struct Join {
  template <class T>
  __device__ __forceinline__ RowPart<T> operator()(const RowPart<T>& a, const RowPart<T>& b) const {
    const T max = a.max > b.max ? a.max : b.max;
    const T of_a = a.max == max ? T(1) : exp(a.max - max);
    const T of_b = b.max == max ? T(1) : exp(b.max - max);
    return {max, a.sum * of_a + b.sum * of_b, a.product * of_a + b.product * of_b};
  }
};

template <class T>
__device__ __forceinline__ RowPart<T> shuffled(const RowPart<T>& part, int bits) {
  return {__shfl_xor_sync(kWholeWarp, part.max, bits), __shfl_xor_sync(kWholeWarp, part.sum, bits),
          __shfl_xor_sync(kWholeWarp, part.product, bits)};
}

template <class T>
__device__ __forceinline__ RowPart<T> warp_join(RowPart<T> part) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    // The lower lane's part comes first, so that both lanes get the same.
    const RowPart<T> other = shuffled(part, bits);
    part = (threadIdx.x & bits) ? Join()(other, part) : Join()(part, other);
  }
  return part;
}

template <class T>
__device__ __forceinline__ RowPart<T> block_join(RowPart<T> part, RowPart<T>* scratch) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  part = warp_join(part);
  if (lane == 0) scratch[warp] = part;
  __syncthreads();
  const RowPart<T> nothing = {lowest<T>(), T(0), T(0)};
  part = warp_join(lane < static_cast<int>(blockDim.x) / kWarp ? scratch[lane] : nothing);
  __syncthreads();
  return part;
}

// How many reads the edit of this one has.
template <class Logit>
__device__ int reads_beside(const ValueLossParams<Logit>& params, int64_t row, int* scratch) {
  const int64_t edit = params.edit_of_read[row];
  int count = 0;
  for (int64_t i = threadIdx.x; i < params.n_reads; i += blockDim.x) {
    count += params.edit_of_read[i] == edit;
  }
  return block_sum(count, scratch);
}

// Whether the target is the likeliest word, the first of equals; nothing is where there is a NaN.
template <class Logit>
__device__ bool is_likeliest(const Logit* logits, int64_t vocabulary, int64_t target,
                             int* scratch) {
  using T = Compute<Logit>;
  const T best = widen<T>(logits[target]);
  int beaten = 0;
  for (int64_t i = threadIdx.x; i < vocabulary; i += blockDim.x) {
    const T x = widen<T>(logits[i]);
    beaten += i < target ? !(x < best) : !(x <= best);
  }
  return block_sum(beaten, scratch) == 0;
}

template <class Logit>
__device__ void read_row(const ValueLossParams<Logit>& params, int64_t row, const Logit* logits,
                         Compute<Logit> log_sum, int* scratch) {
  using T = Compute<Logit>;
  const int64_t target = params.target_ids[row];
  Logit* gradient = params.gradient + row * params.vocabulary;
  const T share = T(1) / reads_beside(params, row, scratch);
  const bool right = is_likeliest(logits, params.vocabulary, target, scratch);
  for (int64_t i = threadIdx.x; i < params.vocabulary; i += blockDim.x) {
    const T p = exp(widen<T>(logits[i]) - log_sum);
    gradient[i] = narrow<Logit>(share * p - (i == target ? share : T(0)));
  }
  if (threadIdx.x == 0) {
    params.row_loss[row] = log_sum - widen<T>(logits[target]);
    params.row_right[row] = right;
  }
}

template <class Logit>
__device__ void kl_row(const ValueLossParams<Logit>& params, int64_t row, const Logit* logits,
                       Compute<Logit> log_sum, Compute<Logit> kl) {
  using T = Compute<Logit>;
  const int64_t at = (row - params.n_reads) * params.vocabulary;
  Logit* gradient = params.gradient + row * params.vocabulary;
  const bool is_first = params.log_probs_init == nullptr;
  for (int64_t i = threadIdx.x; i < params.vocabulary; i += blockDim.x) {
    const T log_p = widen<T>(logits[i]) - log_sum, p = exp(log_p);
    T slope = 0;
    if (is_first) {
      params.log_probs_now[at + i] = log_p;
    } else if (p != T(0)) {
      slope = static_cast<T>(params.kl_factor) * p * (log_p - params.log_probs_init[at + i] - kl);
    }
    // Where the row holds a NaN, so do the loss and the whole gradient.
    gradient[i] = narrow<Logit>(is_first ? p - p : slope);
  }
  if (threadIdx.x == 0) params.row_loss[row] = kl;
}

template <class Logit>
__global__ void __launch_bounds__(kThreads) value_loss_kernel(ValueLossParams<Logit> params) {
  using T = Compute<Logit>;
  Storage<T>& shared = shared_storage<Storage<T>>();
  const int64_t row = blockIdx.x;
  const Logit* logits = params.logits + row * params.row_stride;
  const bool is_read = row < params.n_reads;
  const bool is_compared = !is_read && params.log_probs_init != nullptr;
  const T* init =
      params.log_probs_init + (is_compared ? row - params.n_reads : 0) * params.vocabulary;

  RowPart<T> part = {lowest<T>(), T(0), T(0)};
  for (int64_t i = threadIdx.x; i < params.vocabulary; i += blockDim.x) {
    add(part, widen<T>(logits[i]), is_compared ? init[i] : T(0));
  }
  part = block_join(part, shared.parts);
  const T log_sum = part.max + log(part.sum);
  if (is_read) {
    read_row(params, row, logits, log_sum, shared.counts);
  } else {
    // sum of p (log p - log p_init), where log p = x - log_sum. NaN - NaN keeps a NaN.
    const T kl = is_compared ? part.product / part.sum - log_sum : log_sum - log_sum;
    kl_row(params, row, logits, log_sum, kl);
  }
}

// A thread an edit: its reads lie side by side and are few.
template <class Logit>
__global__ void __launch_bounds__(kReduceThreads) sum_rows_kernel(ValueLossParams<Logit> params) {
  using T = Compute<Logit>;
  const int64_t edit = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (edit >= params.n_edits) return;
  T sum = 0;
  int count = 0, n_right = 0;
  for (int64_t row = 0; row < params.n_reads; ++row) {
    if (params.edit_of_read[row] != edit) continue;
    sum += params.row_loss[row];
    n_right += params.row_right[row];
    ++count;
  }
  const T kl = params.row_loss[params.n_reads + edit];
  params.losses[edit] = sum / count + static_cast<T>(params.kl_factor) * kl;
  params.right[edit] = n_right == count;
}

}  // namespace

template <class Logit>
void value_loss(const ValueLossParams<Logit>& params, cudaStream_t stream) {
  const auto n_rows = static_cast<unsigned>(params.n_reads + params.n_edits);
  const auto n_blocks =
      static_cast<unsigned>((params.n_edits + kReduceThreads - 1) / kReduceThreads);
  launch(value_loss_kernel<Logit>, dim3(n_rows), dim3(kThreads), sizeof(Storage<Compute<Logit>>),
         stream, params);
  launch(sum_rows_kernel<Logit>, dim3(n_blocks), dim3(kReduceThreads), 0, stream, params);
}

template void value_loss(const ValueLossParams<double>&, cudaStream_t);
template void value_loss(const ValueLossParams<float>&, cudaStream_t);
template void value_loss(const ValueLossParams<BFloat16>&, cudaStream_t);
template void value_loss(const ValueLossParams<Half>&, cudaStream_t);

}  // namespace rome_fast
