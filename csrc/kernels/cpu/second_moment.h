// moment_sum += K^T K over selected rows of K: the lower triangle of a rank-n update (syrk).
#pragma once

#include <cstdint>

#include "kernels/cpu/parallel.h"

namespace rome_fast {

// Strides count elements. `rows` lists the n rows of keys that take part.
template <class Key, class Sum>
struct SecondMomentParams {
  Sum* moment_sum;  // [d, d], only row >= col is read or written
  int64_t moment_row_stride;
  int64_t moment_col_stride;
  Sum* compensation;  // [d, d] like moment_sum, or null
  int64_t compensation_row_stride;
  int64_t compensation_col_stride;
  const Key* keys;  // [*, d]
  int64_t keys_row_stride;
  int64_t keys_col_stride;
  const int64_t* rows;  // [n]
  int64_t n;
  int64_t d;
};

// Products and sums are formed in Sum, in an order that depends on the instruction set and on the
// caches (second_moment_blocking.h), not on the thread count. Dot products of bfloat16 pairs, where
// the CPU has them, count subnormal keys and sums as zero; a compensated sum goes without. With
// compensation the value is moment_sum + compensation, and each slab of products is added to it
// without losing what rounds off.
// Instantiated for Key in {double, float, BFloat16, Half}, Sum in {double, float}.
template <class Key, class Sum>
void second_moment(const SecondMomentParams<Key, Sum>& params, const Pool& pool);

}  // namespace rome_fast
