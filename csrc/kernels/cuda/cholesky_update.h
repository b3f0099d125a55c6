// L <- the Cholesky factor of L L^T + x x^T or L L^T - x x^T, in place and without refactoring.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace rome_fast {

// What the update does to column j: new = scale * old + weight * (sum of old a over the columns
// behind it, in the same row).
struct ColumnStep {
  double scale;
  double weight;
  double a;
};

// Strides count elements. The strictly upper part of the factor is neither read nor written.
template <class T>
struct CholeskyUpdateParams {
  T* factor;  // [d, d] lower
  int64_t row_stride;
  int64_t col_stride;
  int64_t d;
  const double* a;    // [d], L^-1 x
  ColumnStep* steps;  // [d], to work in
  bool downdate;
  bool* applied;  // []
};

// Method C1 of Gill, Golub, Murray and Saunders (1974), behind forward_solve, which finds a. Writes
// nothing into the factor if anything is not finite or 1 - |a|^2 is not above 64 eps of T.
// Instantiated for float and double. The naive one is there to be compared with.
template <class T>
void cholesky_update(const CholeskyUpdateParams<T>& params, cudaStream_t stream);

template <class T>
void cholesky_update_naive(const CholeskyUpdateParams<T>& params, cudaStream_t stream);

}  // namespace rome_fast
