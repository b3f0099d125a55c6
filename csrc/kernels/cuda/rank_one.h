// weight += v u^T in one read and one write of it, and what finds u and v from a solution.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/any_vector.cuh"

namespace rome_fast {

// Strides count elements.
template <class Weight>
struct RankOneUpdateParams {
  Weight* weight;  // [d_value, d_key]
  int64_t row_stride;
  int64_t col_stride;
  int64_t d_value;
  int64_t d_key;
  const Compute<Weight>* u;  // [d_key], contiguous
  const Compute<Weight>* v;  // [d_value], contiguous
  const bool* applied;       // []: nothing is written unless it is true; may be null
};

// Where the new weight goes besides, rounded to half precision.
template <class Half16>
struct RoundedWeight {
  Half16* at;  // [d_value, d_key]
  int64_t row_stride;
  int64_t col_stride;
};

// weight = narrow(widen(weight) + v_i * u_j), the product and the sum rounded separately.
// Instantiated for Weight in {double, float, BFloat16, Half}.
template <class Weight>
void rank_one_update(const RankOneUpdateParams<Weight>& params, cudaStream_t stream);

// The same, and its rounding in the same pass. Instantiated for BFloat16 and Half.
template <class Half16>
void rank_one_update(const RankOneUpdateParams<float>& params, const RoundedWeight<Half16>& rounded,
                     cudaStream_t stream);

// Of a part of u.
struct KeySums {
  double denominator;
  double scale;  // key . u
  bool finite;
};

// From w = C^-1 key: u = w / |w|, denominator = denominator_key . u, v = residual / denominator,
// update_norm = |v|, and whether all is as rank_one_solve_apply_ wants it.
template <class Value>
struct RankOneSolutionParams {
  AnyVector w;                // [d_key]
  AnyVector key;              // [d_key]
  AnyVector denominator_key;  // [d_key]
  AnyVector residual;         // [d_value]
  int64_t d_key;
  int64_t d_value;
  double min_denominator;
  double max_norm;
  Value* u;             // [d_key], contiguous
  Value* v;             // [d_value], contiguous
  double* denominator;  // []
  double* update_norm;  // []
  bool* applied;        // []
  KeySums* key_sums;    // rank_one_solution_bytes(), to work in
};

int64_t rank_one_solution_bytes();

// Instantiated for float and double.
template <class Value>
void rank_one_solution(const RankOneSolutionParams<Value>& params, cudaStream_t stream);

}  // namespace rome_fast
