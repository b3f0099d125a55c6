// Blocked triangular solves for one instruction set (included by cholesky_solve.cpp).
//
// Memory is seen as lines of unit stride: the rows of a row-major factor (its lower triangle) or
// the columns of a column-major one (an upper triangle of lines). Each solve then runs along the
// lines, either as dot products or as axpys, so that both always stream memory forwards.

namespace rome_fast::ROME_FAST_ISA {

// Lines [0, d) of a triangle; line i holds positions [0, i] if lower, else [i, d).
template <class T>
struct Triangle {
  const T* lines;
  int64_t line_stride;
  int64_t d;
  bool lower;

  const T* line(int64_t i) const { return lines + i * line_stride; }
};

// Every parallel region ends in a barrier, which on a busy machine costs a time slice: few blocks,
// and a second thread only where it has this many elements of the factor to read.
inline constexpr int64_t kBlocks = 8;
inline constexpr int64_t kMinBlock = 256;
inline constexpr int64_t kGrainElements = 1024 * 1024;

inline int64_t block_size(int64_t d) {
  const int64_t block = (d + kBlocks - 1) / kBlocks;
  return block < kMinBlock ? kMinBlock : block;
}

template <class T>
ROME_FAST_TARGET double dot(const T* line, const double* x, int64_t begin, int64_t end) {
  constexpr int kStep = kLanes<double>;
  DoubleVec sums[4] = {};
  int64_t j = begin;
  for (; j + 4 * kStep <= end; j += 4 * kStep) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const DoubleVec a = load_double(line + j + s * kStep);
      sums[s] = mul_add(a, load_double(x + j + s * kStep), sums[s]);
    }
  }
  double sum = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; j < end; ++j) sum += double(line[j]) * x[j];
  return sum;
}

// x[begin, end) -= scale * line[begin, end)
template <class T>
ROME_FAST_TARGET void axpy(const T* line, double scale, double* x, int64_t begin, int64_t end) {
  for (int64_t j = begin; j < end; ++j) x[j] -= scale * double(line[j]);
}

// x[begin, end) -= sum of scales[s] * line s, for four neighbouring lines: x is read once. Every
// position gets the same bits wherever the range begins, so the thread count does not show.
template <class T>
ROME_FAST_TARGET void axpy4(const T* line, int64_t line_stride, const double* scales, double* x,
                            int64_t begin, int64_t end) {
  constexpr int kStep = kLanes<double>;
  DoubleVec minus_scale[4];
  for (int s = 0; s < 4; ++s) minus_scale[s] = -scales[s] - DoubleVec{};
  int64_t j = begin;
  for (; j + kStep <= end; j += kStep) {
    DoubleVec x_j = load<DoubleVec>(x + j);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      x_j = mul_add(minus_scale[s], load_double(line + s * line_stride + j), x_j);
    }
    store(x + j, x_j);
  }
  for (; j < end; ++j) {
    for (int s = 0; s < 4; ++s) x[j] = mul_add(-scales[s], double(line[s * line_stride + j]), x[j]);
  }
}

// Solve with the triangle of lines itself: x_i = (x_i - line_i . x) / line_i[i].
template <class T>
ROME_FAST_TARGET void solve_by_dots(const Triangle<T>& t, double* x, const Pool& pool) {
  const int64_t block = block_size(t.d);
  const int64_t blocks = (t.d + block - 1) / block;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = (t.lower ? b : blocks - 1 - b) * block;
    const int64_t end = begin + block < t.d ? begin + block : t.d;
    const int64_t solved_begin = t.lower ? 0 : end;
    const int64_t solved_end = t.lower ? begin : t.d;
    if (solved_begin < solved_end) {
      const int64_t grain = kGrainElements / (solved_end - solved_begin) + 1;
      pool.parallel_for(end - begin, grain, [&](int64_t first, int64_t last) {
        for (int64_t i = begin + first; i < begin + last; ++i) {
          x[i] -= dot(t.line(i), x, solved_begin, solved_end);
        }
      });
    }
    for (int64_t step = 0; step < end - begin; ++step) {
      const int64_t i = t.lower ? begin + step : end - 1 - step;
      const double rest = t.lower ? dot(t.line(i), x, begin, i) : dot(t.line(i), x, i + 1, end);
      x[i] = (x[i] - rest) / double(t.line(i)[i]);
    }
  }
}

// Solve with the transpose of the triangle: once x_i is known, x -= x_i * line_i.
template <class T>
ROME_FAST_TARGET void solve_by_axpys(const Triangle<T>& t, double* x, const Pool& pool) {
  const int64_t block = block_size(t.d);
  const int64_t blocks = (t.d + block - 1) / block;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = (t.lower ? blocks - 1 - b : b) * block;
    const int64_t end = begin + block < t.d ? begin + block : t.d;
    for (int64_t step = 0; step < end - begin; ++step) {
      const int64_t i = t.lower ? end - 1 - step : begin + step;
      x[i] /= double(t.line(i)[i]);
      axpy(t.line(i), x[i], x, t.lower ? begin : i + 1, t.lower ? i : end);
    }
    const int64_t rest_begin = t.lower ? 0 : end;
    const int64_t rest_end = t.lower ? begin : t.d;
    const int64_t grain = kGrainElements / (end - begin) + 1;
    pool.parallel_for(rest_end - rest_begin, grain, [&](int64_t first, int64_t last) {
      int64_t i = begin;
      for (; i + 4 <= end; i += 4) {
        axpy4(t.line(i), t.line_stride, x + i, x, rest_begin + first, rest_begin + last);
      }
      for (; i < end; ++i) axpy(t.line(i), x[i], x, rest_begin + first, rest_begin + last);
    });
  }
}

template <class T>
void forward_solve(const CholeskySolveParams<T>& p, const Pool& pool) {
  if (p.col_stride == 1) {
    solve_by_dots(Triangle<T>{p.factor, p.row_stride, p.d, true}, p.x, pool);
  } else {
    solve_by_axpys(Triangle<T>{p.factor, p.col_stride, p.d, false}, p.x, pool);
  }
}

template <class T>
void backward_solve(const CholeskySolveParams<T>& p, const Pool& pool) {
  if (p.col_stride == 1) {
    solve_by_axpys(Triangle<T>{p.factor, p.row_stride, p.d, true}, p.x, pool);
  } else {
    solve_by_dots(Triangle<T>{p.factor, p.col_stride, p.d, false}, p.x, pool);
  }
}

}  // namespace rome_fast::ROME_FAST_ISA
