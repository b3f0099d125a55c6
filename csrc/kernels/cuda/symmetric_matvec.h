// y = A x for a symmetric A of which the lower triangle is stored: bound by reading that, once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/any_vector.cuh"

namespace rome_fast {

// Strides count elements. The strictly upper part of the matrix is never read.
template <class T>
struct SymmetricMatvecParams {
  const T* matrix;  // [d, d]
  int64_t row_stride;
  int64_t col_stride;
  int64_t d;
  AnyVector x;       // [d]
  double* y;         // [d], contiguous
  double* partials;  // symmetric_matvec_bytes(d)
};

int64_t symmetric_matvec_bytes(int64_t d);

// The matrix is read in its own precision, everything else is double. Instantiated for float and
// double.
template <class T>
void symmetric_matvec(const SymmetricMatvecParams<T>& params, cudaStream_t stream);

}  // namespace rome_fast
