// y = A x for a symmetric A of which the lower triangle is stored.
#pragma once

#include <cstdint>

namespace rome_fast {

// Strides count elements. The strictly upper part of the matrix is never read.
template <class T>
struct SymmetricMatvecParams {
  const T* matrix;  // [d, d]
  int64_t row_stride;
  int64_t col_stride;
  int64_t d;
  const double* x;  // [d], contiguous
  double* y;        // [d], contiguous
};

// Everything but the matrix is double. Instantiated for float and double.
template <class T>
void symmetric_matvec(const SymmetricMatvecParams<T>& params);

}  // namespace rome_fast
