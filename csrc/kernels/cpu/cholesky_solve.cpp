#include "kernels/cpu/cholesky_solve.h"

#define ROME_FAST_BODY "kernels/cpu/cholesky_solve_body.h"
#include "kernels/cpu/foreach_isa.h"

namespace rome_fast {
namespace {

template <class T>
bool has_unit_stride(const CholeskySolveParams<T>& p) {
  return p.row_stride == 1 || p.col_stride == 1;
}

template <class T>
double element(const CholeskySolveParams<T>& p, int64_t row, int64_t col) {
  return double(p.factor[row * p.row_stride + col * p.col_stride]);
}

// The definitions, one element at a time, on one thread and for any strides.
template <class T>
void forward_solve_naive(const CholeskySolveParams<T>& p) {
  for (int64_t i = 0; i < p.d; ++i) {
    for (int64_t j = 0; j < i; ++j) p.x[i] -= element(p, i, j) * p.x[j];
    p.x[i] /= element(p, i, i);
  }
}

template <class T>
void backward_solve_naive(const CholeskySolveParams<T>& p) {
  for (int64_t i = p.d - 1; i >= 0; --i) {
    p.x[i] /= element(p, i, i);
    for (int64_t j = 0; j < i; ++j) p.x[j] -= element(p, i, j) * p.x[i];
  }
}

}  // namespace

template <class T>
void forward_solve(const CholeskySolveParams<T>& params, const Pool& pool) {
  if (!has_unit_stride(params)) return forward_solve_naive(params);
  ROME_FAST_CALL_ISA(forward_solve, params, pool);
}

template <class T>
void cholesky_solve(const CholeskySolveParams<T>& params, const Pool& pool) {
  forward_solve(params, pool);
  if (!has_unit_stride(params)) return backward_solve_naive(params);
  ROME_FAST_CALL_ISA(backward_solve, params, pool);
}

#define ROME_FAST_INSTANTIATE(T)                                           \
  template void forward_solve(const CholeskySolveParams<T>&, const Pool&); \
  template void cholesky_solve(const CholeskySolveParams<T>&, const Pool&);
ROME_FAST_INSTANTIATE(float)
ROME_FAST_INSTANTIATE(double)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
