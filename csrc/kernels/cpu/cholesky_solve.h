// x <- (L L^T)^-1 x for one right-hand side: two triangular solves (trsv), bound by reading L.
#pragma once

#include <cstdint>

#include "kernels/cpu/parallel.h"

namespace rome_fast {

// Strides count elements. The strictly upper part of the factor is never read.
template <class T>
struct CholeskySolveParams {
  const T* factor;  // [d, d] lower
  int64_t row_stride;
  int64_t col_stride;
  int64_t d;
  double* x;  // [d], contiguous
};

// The factor is read in its own precision, everything else is double. Either stride may be the
// unit one; a factor with none takes the naive path. Instantiated for float and double.
template <class T>
void cholesky_solve(const CholeskySolveParams<T>& params, const Pool& pool);

// The definition, one element at a time, on one thread and for any strides.
template <class T>
void cholesky_solve_naive(const CholeskySolveParams<T>& params);

}  // namespace rome_fast
