// The rows of a rank-one Cholesky update for one instruction set (included by cholesky_update.cpp).
//
// Rows are independent: each walks from its diagonal to column 0 with a running sum. A block of
// rows walks together, which hides the latency of the sums, and vectorises where rows are adjacent.

namespace rome_fast::ROME_FAST_ISA {

// Rows [begin, end) of one column; sums[i] = sum of a_k L[i, k] over the columns passed.
template <class T>
ROME_FAST_TARGET ROME_FAST_INLINE void step_column(const ColumnStep& step, T* column,
                                                   int64_t row_stride, int64_t begin, int64_t end,
                                                   double* sums) {
  for (int64_t i = begin; i < end; ++i) {
    const double old = double(column[i * row_stride]);
    column[i * row_stride] = T(mul_add(sums[i], step.weight, old * step.scale));
    sums[i] = mul_add(old, step.a, sums[i]);
  }
}

// Rows [first, first + rows), rows <= kRows.
template <int kRows, bool kUnitRows, class T>
ROME_FAST_TARGET void update_rows(const CholeskyUpdateParams<T>& p, const ColumnStep* steps,
                                  int64_t first, int64_t rows) {
  const int64_t row_stride = kUnitRows ? 1 : p.row_stride;
  double sums[kRows] = {};
  T* const top = p.factor + first * row_stride;
  int64_t col = first + rows - 1;
  for (; col > first; --col) {
    step_column(steps[col], top + col * p.col_stride, row_stride, col - first, rows, sums);
  }
  if (rows == kRows) {
    for (; col >= 0; --col) {
      step_column(steps[col], top + col * p.col_stride, row_stride, 0, kRows, sums);
    }
  } else {
    for (; col >= 0; --col) {
      step_column(steps[col], top + col * p.col_stride, row_stride, 0, rows, sums);
    }
  }
}

// Blocks are taken from both ends of the triangle, so that every thread gets the same work.
template <int kRows, bool kUnitRows, class T>
void update_blocks(const CholeskyUpdateParams<T>& p, const ColumnStep* steps, const Pool& pool) {
  constexpr int64_t kGrainElements = 1024 * 1024;  // as in the solve: barriers are not free
  const int64_t blocks = (p.d + kRows - 1) / kRows;
  const auto update_block = [&](int64_t block) {
    const int64_t rest = p.d - block * kRows;
    update_rows<kRows, kUnitRows>(p, steps, block * kRows, rest < kRows ? rest : kRows);
  };
  const int64_t grain = kGrainElements / (p.d * kRows + 1) + 1;
  pool.parallel_for((blocks + 1) / 2, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      update_block(block);
      if (blocks - 1 - block != block) update_block(blocks - 1 - block);
    }
  });
}

template <class T>
void update_factor(const CholeskyUpdateParams<T>& p, const ColumnStep* steps, const Pool& pool) {
  if (p.row_stride == 1) {
    update_blocks<128, true>(p, steps, pool);
  } else {
    update_blocks<8, false>(p, steps, pool);
  }
}

}  // namespace rome_fast::ROME_FAST_ISA
