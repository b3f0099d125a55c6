// One step of Adam on each edit's offset, with its decay, its ball and its end.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rome_fast {

// Strides count elements.
template <class T>
struct Matrix {
  T* data;
  int64_t row_stride;
  int64_t col_stride;

  __device__ T& operator()(int64_t row, int64_t col) const {
    return data[row * row_stride + col * col_stride];
  }
};

template <class T>
struct ValueStepParams {
  Matrix<T> deltas;   // [n_edits, d_value]
  Matrix<T> mean;     // [n_edits, d_value]
  Matrix<T> square;   // [n_edits, d_value]
  int64_t* n_steps;   // []
  Matrix<T> history;  // [max_steps, n_edits]
  bool* active;       // [n_edits]
  int64_t active_stride;
  const T* gradients;  // [n_edits, d_value]
  const T* losses;     // [n_edits]
  const bool* right;   // [n_edits]
  const T* radii;      // [n_edits]
  const T* decays;     // [n_edits]
  int64_t n_edits;
  int64_t d_value;
  int64_t max_steps;
  double lr;
  double stop_loss;
  bool mean_loss_suffices;
};

// Instantiated for float and double. The naive one is there to be compared with.
template <class T>
void value_step(const ValueStepParams<T>& params, cudaStream_t stream);

template <class T>
void value_step_naive(const ValueStepParams<T>& params, cudaStream_t stream);

}  // namespace rome_fast
