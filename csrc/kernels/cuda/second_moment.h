// moment_sum += K^T K over the rows of K that a mask keeps: the lower triangle of a rank-n update.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rome_fast {

// Strides count elements.
template <class Key, class Sum>
struct SecondMomentParams {
  Sum* moment_sum;  // [d, d], only row >= col is read or written
  int64_t moment_row_stride;
  int64_t moment_col_stride;
  Sum* compensation;  // [d, d] like moment_sum, or null; float only
  int64_t compensation_row_stride;
  int64_t compensation_col_stride;
  const Key* keys;  // [n, d]
  int64_t keys_row_stride;
  int64_t keys_col_stride;
  const bool* mask;  // [n], or null; rows that it drops may hold anything
  int64_t mask_stride;
  int64_t n;
  int64_t d;
  bool allow_tf32;  // float keys may be multiplied less exactly, as if they were TF32
  void* memory;     // second_moment_bytes() to work in, aligned to 16; its contents do not matter
};

// Runs the fastest of the kernels below that can. ROME_FAST_CUDA_KERNEL=wgmma|mma|naive names the
// fastest that may be used: it exists so that each can be tested.
// Instantiated for Key in {double, float, BFloat16, Half}, Sum in {double, float}, but for double
// keys with a float sum.
template <class Key, class Sum>
void second_moment(const SecondMomentParams<Key, Sum>& params, cudaStream_t stream);

// Of params that have no memory yet.
template <class Key, class Sum>
size_t second_moment_bytes(const SecondMomentParams<Key, Sum>& params);

// Anything, any strides; sums in Sum. The yardstick of the others, and the fallback.
template <class Key, class Sum>
void second_moment_naive(const SecondMomentParams<Key, Sum>& params, cudaStream_t stream);

// Tensor cores of sm_80 and later by mma.sync, for keys of float, BFloat16 or Half, any strides.
template <class Key, class Sum>
void second_moment_mma(const SecondMomentParams<Key, Sum>& params, cudaStream_t stream);

// Tensor cores of sm_90a by wgmma, for keys of float, BFloat16 or Half.
template <class Key, class Sum>
void second_moment_wgmma(const SecondMomentParams<Key, Sum>& params, cudaStream_t stream);

// Whether second_moment_wgmma can: on this device, with how these keys lie in memory.
template <class Key, class Sum>
bool wgmma_can_run(const SecondMomentParams<Key, Sum>& params);

// The memory that second_moment_wgmma works in.
template <class Key, class Sum>
size_t wgmma_bytes(const SecondMomentParams<Key, Sum>& params);

}  // namespace rome_fast
