#include "kernels/cpu/rank_one.h"

#include <cmath>

namespace rome_fast {
namespace {

// A thread's barrier costs a time slice on a busy machine; this many elements are about 2 ms.
constexpr int64_t kGrainElements = 4 << 20;

}  // namespace
}  // namespace rome_fast

#define ROME_FAST_BODY "kernels/cpu/rank_one_body.h"
#include "kernels/cpu/foreach_isa.h"

namespace rome_fast {
namespace {

template <class A, class B>
double dot(const A* a, const B* b, int64_t size) {
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

// out = x / divisor; false if any element of it is not finite.
template <class T>
bool divide(const double* x, double divisor, int64_t size, T* out) {
  bool finite = true;
  for (int64_t i = 0; i < size; ++i) {
    out[i] = static_cast<T>(x[i] / divisor);
    finite &= std::isfinite(out[i]);
  }
  return finite;
}

}  // namespace

template <class Weight>
void rank_one_update(const RankOneUpdateParams<Weight>& params, const Pool& pool) {
  ROME_FAST_CALL_ISA(rank_one_update, params, pool);
}

template <class Weight>
RankOneResult rank_one_apply_solution(const RankOneSolveParams& solve,
                                      const RankOneUpdateParams<Weight>& update, Compute<Weight>* u,
                                      Compute<Weight>* v, const Pool& pool) {
  const int64_t d_key = update.d_key;
  const int64_t d_value = update.d_value;
  const double norm = std::sqrt(dot(solve.w, solve.w, d_key));
  const bool u_finite = divide(solve.w, norm, d_key, u);
  // From the rounded u and v, so that what is returned is what was written.
  const double denominator = dot(solve.denominator_key, u, d_key);
  const bool v_finite = divide(solve.residual, denominator, d_value, v);
  const double update_norm = std::sqrt(dot(v, v, d_value));
  const double least = solve.min_denominator * std::fabs(dot(solve.key, u, d_key));
  const bool applied = u_finite && v_finite && std::isfinite(denominator) &&
                       std::isfinite(update_norm) && std::fabs(denominator) >= least &&
                       update_norm <= solve.max_norm;
  if (applied) rank_one_update(update, pool);
  return {denominator, update_norm, applied};
}

#define ROME_FAST_INSTANTIATE(Weight)                                                \
  template void rank_one_update(const RankOneUpdateParams<Weight>&, const Pool&);    \
  template RankOneResult rank_one_apply_solution(const RankOneSolveParams&,          \
                                                 const RankOneUpdateParams<Weight>&, \
                                                 Compute<Weight>*, Compute<Weight>*, const Pool&);
ROME_FAST_INSTANTIATE(double)
ROME_FAST_INSTANTIATE(float)
ROME_FAST_INSTANTIATE(BFloat16)
ROME_FAST_INSTANTIATE(Half)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
