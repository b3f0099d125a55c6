#include "kernels/cuda/cholesky_solve.cuh"
#include "kernels/cuda/cholesky_solve.h"
#include "kernels/cuda/chosen.h"

namespace rome_fast {
namespace {

template <class T>
void solve(const Triangle<T>& p, cudaStream_t stream) {
  const dim3 grid((p.d + kSolveRows - 1) / kSolveRows), block(kSolveThreads);
  if (naive_is_chosen()) {
    launch(solve_triangle_naive_kernel<T>, dim3(1), dim3(1024), 0, stream, p);
  } else if (p.row_stride == 1 || p.row_stride == -1) {
    launch(solve_triangle_kernel<T, false>, grid, block, sizeof(SolveStorage), stream, p);
  } else {
    launch(solve_triangle_kernel<T, true>, grid, block, sizeof(SolveStorage), stream, p);
  }
}

template <class T>
Triangle<T> forward(const CholeskySolveParams<T>& p, double* x, unsigned* ticket) {
  return {p.factor, p.row_stride, p.col_stride, p.d, p.rhs, x, 1, ticket};
}

// L^T x = y with the last rows first: row i of that triangle is column d - 1 - i of the factor.
template <class T>
Triangle<T> backward(const CholeskySolveParams<T>& p, const double* y, unsigned* ticket) {
  const int64_t last = p.d - 1;
  return {p.factor + last * (p.row_stride + p.col_stride),
          -p.col_stride,
          -p.row_stride,
          p.d,
          AnyVector{y + last, -1, Element::kDouble},
          p.x + last,
          -1,
          ticket};
}

}  // namespace

// Two tickets, and what the forward solve finds.
int64_t cholesky_solve_bytes(int64_t d) { return 2 * sizeof(unsigned) + d * sizeof(double); }

template <class T>
void forward_solve(const CholeskySolveParams<T>& p, cudaStream_t stream) {
  if (p.d == 0) return;
  unsigned* tickets = static_cast<unsigned*>(p.workspace);
  check_cuda(cudaMemsetAsync(p.workspace, 0xff, 2 * sizeof(unsigned), stream));
  check_cuda(cudaMemsetAsync(p.x, 0xff, p.d * sizeof(double), stream));
  solve(forward(p, p.x, tickets), stream);
}

template <class T>
void cholesky_solve(const CholeskySolveParams<T>& p, cudaStream_t stream) {
  if (p.d == 0) return;
  unsigned* tickets = static_cast<unsigned*>(p.workspace);
  double* y = reinterpret_cast<double*>(tickets + 2);
  check_cuda(cudaMemsetAsync(p.workspace, 0xff, cholesky_solve_bytes(p.d), stream));
  check_cuda(cudaMemsetAsync(p.x, 0xff, p.d * sizeof(double), stream));
  solve(forward(p, y, tickets), stream);
  solve(backward(p, y, tickets + 1), stream);
}

#define ROME_FAST_INSTANTIATE(T)                                            \
  template void forward_solve(const CholeskySolveParams<T>&, cudaStream_t); \
  template void cholesky_solve(const CholeskySolveParams<T>&, cudaStream_t);
ROME_FAST_INSTANTIATE(float)
ROME_FAST_INSTANTIATE(double)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
