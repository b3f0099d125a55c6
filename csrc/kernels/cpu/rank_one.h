// weight += v u^T in one read and one write of it, alone or behind the solve that finds u and v.
#pragma once

#include <cstdint>

#include "kernels/cpu/cholesky_solve.h"
#include "kernels/cpu/parallel.h"

namespace rome_fast {

// The type an update is computed in.
template <class Weight>
struct ComputeOf {
  using type = float;
};

template <>
struct ComputeOf<double> {
  using type = double;
};

template <class Weight>
using Compute = typename ComputeOf<Weight>::type;

// Strides count elements.
template <class Weight>
struct RankOneUpdateParams {
  Weight* weight;  // [d_value, d_key]
  int64_t row_stride;
  int64_t col_stride;
  int64_t d_value;
  int64_t d_key;
  const Compute<Weight>* u;  // [d_key]
  const Compute<Weight>* v;  // [d_value]
};

// weight = narrow(widen(weight) + v_i * u_j), the product and the sum rounded separately on every
// instruction set. Instantiated for Weight in {double, float, BFloat16, Half}.
template <class Weight>
void rank_one_update(const RankOneUpdateParams<Weight>& params, const Pool& pool);

// What the solve needs beside the weight and the factor; every vector is contiguous double.
struct RankOneSolveParams {
  const double* key;              // [d_key]
  const double* denominator_key;  // [d_key]
  const double* residual;         // [d_value]
  double* w;                      // [d_key]: C^-1 key on entry
  double min_denominator;
  double max_norm;  // of the update
};

struct RankOneResult {
  double denominator;
  double update_norm;
  bool applied;
};

// Fills u and v (which update.u and update.v point to) and applies them unless refused.
template <class Weight>
RankOneResult rank_one_apply_solution(const RankOneSolveParams& solve,
                                      const RankOneUpdateParams<Weight>& update, Compute<Weight>* u,
                                      Compute<Weight>* v, const Pool& pool);

}  // namespace rome_fast
