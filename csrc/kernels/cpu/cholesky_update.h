// L <- the Cholesky factor of L L^T + x x^T or L L^T - x x^T, in place and without refactoring.
#pragma once

#include <cstdint>

#include "kernels/cpu/parallel.h"

namespace rome_fast {

// Strides count elements. The strictly upper part of the factor is neither read nor written.
template <class T>
struct CholeskyUpdateParams {
  T* factor;  // [d, d] lower
  int64_t row_stride;
  int64_t col_stride;
  int64_t d;
  double* x;  // [d], contiguous; L^-1 x on return
  bool downdate;
};

// Method C1 of Gill, Golub, Murray and Saunders (1974). Returns false and writes nothing into the
// factor if anything is not finite or 1 - |L^-1 x|^2 is not above 64 eps of T. Everything but the
// factor is double; the bits do not depend on the thread count. Instantiated for float and double.
template <class T>
bool cholesky_update(const CholeskyUpdateParams<T>& params, const Pool& pool);

}  // namespace rome_fast
