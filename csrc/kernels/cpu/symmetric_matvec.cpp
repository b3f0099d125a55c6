#include "kernels/cpu/symmetric_matvec.h"

#include <algorithm>

namespace rome_fast {

// Along rows, or along columns where those are the ones of unit stride: line i holds positions
// [0, i] of a lower triangle, or [i, d) of an upper one, which is the same matrix.
template <class T>
void symmetric_matvec(const SymmetricMatvecParams<T>& p) {
  const bool by_rows = p.row_stride != 1;
  const int64_t line_stride = by_rows ? p.row_stride : p.col_stride;
  const int64_t stride = by_rows ? p.col_stride : p.row_stride;
  std::fill(p.y, p.y + p.d, 0.0);
  for (int64_t i = 0; i < p.d; ++i) {
    const T* line = p.matrix + i * line_stride;
    double sum = double(line[i * stride]) * p.x[i];
    for (int64_t j = by_rows ? 0 : i + 1; j < (by_rows ? i : p.d); ++j) {
      const double element = double(line[j * stride]);
      sum += element * p.x[j];
      p.y[j] += element * p.x[i];
    }
    p.y[i] += sum;
  }
}

template void symmetric_matvec(const SymmetricMatvecParams<float>&);
template void symmetric_matvec(const SymmetricMatvecParams<double>&);

}  // namespace rome_fast
