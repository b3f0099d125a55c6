// x = L^-1 b and x = (L L^T)^-1 b for one right-hand side: bound by reading L, once per solve.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/any_vector.cuh"

namespace rome_fast {

// Strides count elements. The strictly upper part of the factor is never read.
template <class T>
struct CholeskySolveParams {
  const T* factor;  // [d, d] lower
  int64_t row_stride;
  int64_t col_stride;
  int64_t d;
  AnyVector rhs;    // [d]
  double* x;        // [d], contiguous
  void* workspace;  // cholesky_solve_bytes(d), aligned to 8
};

int64_t cholesky_solve_bytes(int64_t d);

// The factor is read in its own precision, everything else is double. Either stride may be the
// unit one; a factor with none is read slowly. Instantiated for float and double.
template <class T>
void cholesky_solve(const CholeskySolveParams<T>& params, cudaStream_t stream);

// The first half of it: x = L^-1 b.
template <class T>
void forward_solve(const CholeskySolveParams<T>& params, cudaStream_t stream);

}  // namespace rome_fast
