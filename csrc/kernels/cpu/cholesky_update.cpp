#include "kernels/cpu/cholesky_update.h"

#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/cholesky_solve.h"

namespace rome_fast {
namespace {

// Column j of the new factor is scale * L[:, j] + weight * (sum over k > j of a_k L[:, k]).
struct ColumnStep {
  double a;  // of L^-1 x
  double scale;
  double weight;
};

// With a = L^-1 x and M the factor of I + sign a a^T, the new factor is L M. False if M has none.
template <class T>
bool column_steps(const CholeskyUpdateParams<T>& p, std::vector<ColumnStep>& steps) {
  const double floor = 64 * double(std::numeric_limits<T>::epsilon());
  const double sign = p.downdate ? -1 : 1;
  double t = 1;  // determinant of the leading block of I + sign a a^T
  for (int64_t j = 0; j < p.d; ++j) {
    const double a = p.x[j];
    const double next = t + sign * a * a;
    const bool finite = std::isfinite(p.factor[j * (p.row_stride + p.col_stride)]);
    if (!finite || !std::isfinite(next) || !(next > floor)) return false;
    steps[j] = {a, std::sqrt(next / t), sign * a / std::sqrt(next) / std::sqrt(t)};
    t = next;
  }
  return true;
}

}  // namespace
}  // namespace rome_fast

#define ROME_FAST_BODY "kernels/cpu/cholesky_update_body.h"
#include "kernels/cpu/foreach_isa.h"

namespace rome_fast {
namespace {

template <class T>
void update_factor(const CholeskyUpdateParams<T>& params, const ColumnStep* steps,
                   const Pool& pool) {
  ROME_FAST_CALL_ISA(update_factor, params, steps, pool);
}

}  // namespace

template <class T>
bool cholesky_update(const CholeskyUpdateParams<T>& p, const Pool& pool) {
  forward_solve(CholeskySolveParams<T>{p.factor, p.row_stride, p.col_stride, p.d, p.x}, pool);
  std::vector<ColumnStep> steps(p.d);
  const bool positive_definite = column_steps(p, steps);
  if (positive_definite) update_factor(p, steps.data(), pool);
  return positive_definite;
}

template bool cholesky_update(const CholeskyUpdateParams<float>&, const Pool&);
template bool cholesky_update(const CholeskyUpdateParams<double>&, const Pool&);

}  // namespace rome_fast
