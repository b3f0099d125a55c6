// x <- L^-1 x and (L L^T)^-1 x for one right-hand side: triangular solves (trsv), bound by reading
// L.
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
// unit one; a factor with none takes a slow path. Instantiated for float and double.
template <class T>
void cholesky_solve(const CholeskySolveParams<T>& params, const Pool& pool);

// The first half of it: x <- L^-1 x.
template <class T>
void forward_solve(const CholeskySolveParams<T>& params, const Pool& pool);

}  // namespace rome_fast
