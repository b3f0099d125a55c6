// A block a row, a few passes over it: one for what normalises it, for the KL one more, and one for
// the gradient. All but the first find the row in the L2 cache.
//
// The rows are few (22 of an edit in 21 contexts), so a row is what one multiprocessor reads: 200
// KB of float32 for 50,257 words, 1 MB for 256 Ki. Rows of an odd number of words are aligned to
// no more than one of them, so a thread loads single words, but kGroup before it needs the first.
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/value_loss.h"

namespace rome_fast {
namespace {

constexpr int kThreads = 1024;

// 8 of bfloat16 put 16 KB of a row under way; more of double would not fit the registers.
template <class T>
constexpr int kGroup = sizeof(T) == 8 ? 4 : 8;

// What a part of a row, or all of it, comes to.
template <class T>
struct RowPart {
  T max;
  T sum;  // of e^(x - max)
};

template <class T>
struct Storage {
  RowPart<T> parts[kMaxWarps];
  T sums[kMaxWarps];
  int counts[kMaxWarps];
};

template <class T>
__device__ __forceinline__ T lowest() {
  return -static_cast<T>(INFINITY);
}

// A row, and its logarithm of the sum of exponentials in two parts: their sum would lose digits
// where logits are far from 0.
template <class Logit>
struct Row {
  using T = Compute<Logit>;

  const Logit* logits;
  int64_t vocabulary;
  T max;
  T log_sum;  // of e^(x - max)

  __device__ __forceinline__ T log_prob(T x) const { return (x - max) - log_sum; }
};

// The group of words at `from`, a thread's own; beyond the row there are some that cannot come.
template <class T, class From>
__device__ __forceinline__ void load_group(const From* row, int64_t from, int64_t vocabulary,
                                           T (&words)[kGroup<T>]) {
#pragma unroll
  for (int k = 0; k < kGroup<T>; ++k) {
    const int64_t i = from + k * kThreads;
    words[k] = i < vocabulary ? widen<T>(row[i]) : lowest<T>();
  }
}

// Calls f(i, logit, log_prob_init) for the thread's words of a row; without init the last is 0.
template <class Logit, class T, class F>
__device__ __forceinline__ void for_each_word(const Row<Logit>& row, const T* init, const F& f) {
  for (int64_t from = threadIdx.x; from < row.vocabulary; from += kGroup<T> * kThreads) {
    T logits[kGroup<T>], before[kGroup<T>] = {};
    load_group(row.logits, from, row.vocabulary, logits);
    if (init != nullptr) load_group(init, from, row.vocabulary, before);
#pragma unroll
    for (int k = 0; k < kGroup<T>; ++k) {
      const int64_t i = from + k * kThreads;
      if (i < row.vocabulary) f(i, logits[k], before[k]);
    }
  }
}

// What is -inf adds nothing; a NaN makes the sum NaN.
template <class T>
__device__ __forceinline__ void add_group(RowPart<T>& part, const T (&words)[kGroup<T>]) {
  T max = part.max;
#pragma unroll
  for (int k = 0; k < kGroup<T>; ++k) max = words[k] > max ? words[k] : max;
  if (max > part.max) {
    part.sum *= exp(part.max - max);
    part.max = max;
  }
#pragma unroll
  for (int k = 0; k < kGroup<T>; ++k) {
    if (words[k] != lowest<T>()) part.sum += exp(words[k] - max);
  }
}

struct Join {
  template <class T>
  __device__ __forceinline__ RowPart<T> operator()(const RowPart<T>& a, const RowPart<T>& b) const {
    const T max = a.max > b.max ? a.max : b.max;
    const T of_a = a.max == max ? T(1) : exp(a.max - max);
    const T of_b = b.max == max ? T(1) : exp(b.max - max);
    return {max, a.sum * of_a + b.sum * of_b};
  }
};

template <class T>
__device__ __forceinline__ RowPart<T> warp_join(RowPart<T> part) {
#pragma unroll
  for (int bits = kWarp / 2; bits > 0; bits /= 2) {
    // The lower lane's part comes first, so that both lanes get the same.
    const RowPart<T> other = {__shfl_xor_sync(kWholeWarp, part.max, bits),
                              __shfl_xor_sync(kWholeWarp, part.sum, bits)};
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
  const RowPart<T> nothing = {lowest<T>(), T(0)};
  part = warp_join(lane < kThreads / kWarp ? scratch[lane] : nothing);
  __syncthreads();
  return part;
}

template <class Logit>
__device__ Row<Logit> normalised(const Logit* logits, int64_t vocabulary,
                                 RowPart<Compute<Logit>>* scratch) {
  using T = Compute<Logit>;
  RowPart<T> part = {lowest<T>(), T(0)};
  for (int64_t from = threadIdx.x; from < vocabulary; from += kGroup<T> * kThreads) {
    T words[kGroup<T>];
    load_group(logits, from, vocabulary, words);
    add_group(part, words);
  }
  part = block_join(part, scratch);
  return {logits, vocabulary, part.max, log(part.sum)};
}

// How many reads the edit of this one has.
template <class Logit>
__device__ int reads_beside(const ValueLossParams<Logit>& params, int64_t read, int* scratch) {
  const int64_t edit = params.edit_of_read[read];
  int count = 0;
  for (int64_t i = threadIdx.x; i < params.n_reads; i += kThreads) {
    count += params.edit_of_read[i] == edit;
  }
  return block_sum(count, scratch);
}

template <class Logit>
__device__ void read_row(const ValueLossParams<Logit>& params, int64_t at, const Row<Logit>& row,
                         int* scratch) {
  using T = Compute<Logit>;
  const int64_t target = params.target_ids[at];
  const T best = widen<T>(row.logits[target]);
  const T share = T(1) / reads_beside(params, at, scratch);
  Logit* gradient = params.gradient + at * row.vocabulary;
  int beaten = 0;  // by a greater one, an equal one before it, or a NaN anywhere
  for_each_word(row, static_cast<const T*>(nullptr), [&](int64_t i, T x, T) {
    beaten += i < target ? !(x < best) : !(x <= best);
    gradient[i] = narrow<Logit>(share * exp(row.log_prob(x)) - (i == target ? share : T(0)));
  });
  beaten = block_sum(beaten, scratch);
  if (threadIdx.x == 0) {
    params.row_loss[at] = -row.log_prob(best);
    params.row_right[at] = beaten == 0;
  }
}

// A read of no edit.
template <class Logit>
__device__ void unread_row(const ValueLossParams<Logit>& params, int64_t at) {
  Logit* gradient = params.gradient + at * params.vocabulary;
  for (int64_t i = threadIdx.x; i < params.vocabulary; i += kThreads) {
    gradient[i] = narrow<Logit>(Compute<Logit>(0));
  }
}

// The KL is 0 and flat, or NaN where the row holds one.
template <class Logit>
__device__ void first_row(const ValueLossParams<Logit>& params, int64_t at, const Row<Logit>& row) {
  using T = Compute<Logit>;
  T* now = params.log_probs_now + (at - params.n_reads) * row.vocabulary;
  Logit* gradient = params.gradient + at * row.vocabulary;
  const T zero = row.log_sum - row.log_sum;
  for_each_word(row, static_cast<const T*>(nullptr), [&](int64_t i, T x, T) {
    now[i] = row.log_prob(x);
    gradient[i] = narrow<Logit>(zero);
  });
  if (threadIdx.x == 0) params.row_loss[at] = zero;
}

template <class Logit>
__device__ void kl_row(const ValueLossParams<Logit>& params, int64_t at, const Row<Logit>& row,
                       Compute<Logit>* scratch) {
  using T = Compute<Logit>;
  const T* init = params.log_probs_init + (at - params.n_reads) * row.vocabulary;
  Logit* gradient = params.gradient + at * row.vocabulary;
  const T factor = static_cast<T>(params.kl_factor);
  T kl = 0;
  for_each_word(row, init, [&](int64_t, T x, T before) {
    const T log_p = row.log_prob(x), p = exp(log_p);
    if (p != T(0)) kl += p * (log_p - before);
  });
  kl = block_sum(kl, scratch);
  for_each_word(row, init, [&](int64_t i, T x, T before) {
    const T log_p = row.log_prob(x), p = exp(log_p);
    gradient[i] = narrow<Logit>(p != T(0) ? factor * p * (log_p - before - kl) : T(0));
  });
  if (threadIdx.x == 0) params.row_loss[at] = kl;
}

template <class Logit>
__global__ void __launch_bounds__(kThreads) value_loss_kernel(ValueLossParams<Logit> params) {
  using T = Compute<Logit>;
  Storage<T>& shared = shared_storage<Storage<T>>();
  const int64_t at = blockIdx.x;
  if (at < params.n_reads && params.edit_of_read[at] == params.n_edits) {
    return unread_row(params, at);
  }
  const Row<Logit> row =
      normalised(params.logits + at * params.row_stride, params.vocabulary, shared.parts);
  if (at < params.n_reads) {
    read_row(params, at, row, shared.counts);
  } else if (params.log_probs_init == nullptr) {
    first_row(params, at, row);
  } else {
    kl_row(params, at, row, shared.sums);
  }
}

// A warp an edit.
template <class Logit>
__global__ void __launch_bounds__(kWarp) sum_rows_kernel(ValueLossParams<Logit> params) {
  using T = Compute<Logit>;
  const int64_t edit = blockIdx.x;
  T sum = 0;
  int count = 0, n_right = 0;
  for (int64_t read = threadIdx.x; read < params.n_reads; read += kWarp) {
    if (params.edit_of_read[read] != edit) continue;
    sum += params.row_loss[read];
    n_right += params.row_right[read];
    ++count;
  }
  sum = warp_sum(sum);
  count = warp_sum(count);
  n_right = warp_sum(n_right);
  if (threadIdx.x != 0) return;
  const T kl = params.row_loss[params.n_reads + edit];
  params.losses[edit] = sum / count + static_cast<T>(params.kl_factor) * kl;
  params.right[edit] = n_right == count;
}

}  // namespace

template <class Logit>
void value_loss(const ValueLossParams<Logit>& params, cudaStream_t stream) {
  const auto n_rows = static_cast<unsigned>(params.n_reads + params.n_edits);
  const auto n_edits = static_cast<unsigned>(params.n_edits);
  launch(value_loss_kernel<Logit>, dim3(n_rows), dim3(kThreads), sizeof(Storage<Compute<Logit>>),
         stream, params);
  launch(sum_rows_kernel<Logit>, dim3(n_edits), dim3(kWarp), 0, stream, params);
}

template void value_loss(const ValueLossParams<double>&, cudaStream_t);
template void value_loss(const ValueLossParams<float>&, cudaStream_t);
template void value_loss(const ValueLossParams<BFloat16>&, cudaStream_t);
template void value_loss(const ValueLossParams<Half>&, cudaStream_t);

}  // namespace rome_fast
