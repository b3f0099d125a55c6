// The loss of the search for v* and its gradient by the logits, over the few rows that it reads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/numeric.cuh"

namespace rome_fast {

// The first n_reads rows predict targets; then one row an edit is compared with what it was.
// Strides count elements; a row is contiguous.
template <class Logit>
struct ValueLossParams {
  const Logit* logits;  // [n_reads + n_edits, vocabulary]
  int64_t row_stride;
  const int64_t* target_ids;             // [n_reads]
  const int64_t* edit_of_read;           // [n_reads], in order; n_edits is nobody
  const Compute<Logit>* log_probs_init;  // [n_edits, vocabulary]; null in the first call
  int64_t n_reads;
  int64_t n_edits;
  int64_t vocabulary;
  double kl_factor;
  Logit* gradient;                // [n_reads + n_edits, vocabulary]
  Compute<Logit>* row_loss;       // [n_reads + n_edits]: -log p(target), or the KL
  int* row_right;                 // [n_reads]
  Compute<Logit>* losses;         // [n_edits]
  bool* right;                    // [n_edits]
  Compute<Logit>* log_probs_now;  // [n_edits, vocabulary], written in the first call only
};

// Instantiated for double, float, BFloat16 and Half. The naive one is there to be compared with.
template <class Logit>
void value_loss(const ValueLossParams<Logit>& params, cudaStream_t stream);

template <class Logit>
void value_loss_naive(const ValueLossParams<Logit>& params, cudaStream_t stream);

}  // namespace rome_fast
