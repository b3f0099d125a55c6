#include "kernels/cpu/cholesky_solve.h"

#define ROME_FAST_BODY "kernels/cpu/cholesky_solve_body.h"
#include "kernels/cpu/foreach_isa.h"

namespace rome_fast {

template <class T>
void cholesky_solve(const CholeskySolveParams<T>& params, const Pool& pool) {
  if (params.row_stride != 1 && params.col_stride != 1) return cholesky_solve_naive(params);
  ROME_FAST_CALL_ISA(cholesky_solve, params, pool);
}

template <class T>
void cholesky_solve_naive(const CholeskySolveParams<T>& p) {
  const auto factor = [&](int64_t row, int64_t col) {
    return double(p.factor[row * p.row_stride + col * p.col_stride]);
  };
  for (int64_t i = 0; i < p.d; ++i) {
    for (int64_t j = 0; j < i; ++j) p.x[i] -= factor(i, j) * p.x[j];
    p.x[i] /= factor(i, i);
  }
  for (int64_t i = p.d - 1; i >= 0; --i) {
    p.x[i] /= factor(i, i);
    for (int64_t j = 0; j < i; ++j) p.x[j] -= factor(i, j) * p.x[i];
  }
}

template void cholesky_solve(const CholeskySolveParams<float>&, const Pool&);
template void cholesky_solve(const CholeskySolveParams<double>&, const Pool&);

}  // namespace rome_fast
