// The solve with a diagonal tile of L, in shared memory (included by cholesky_solve.cuh).
//
// Two triangles of 64 rows are inverted ahead of time. A row of a product is then the work of eight
// threads: 8 multiply-adds and 3 shuffles each, where a solve would take one row after another.
#pragma once

#include "kernels/cuda/reduce.cuh"

namespace rome_fast {

constexpr int kSolveRows = 128;
constexpr int kSolveThreads = 512;
constexpr int kHalf = kSolveRows / 2;
constexpr int kInverseColumns = kHalf / 4;  // of a thread, while inverses are made
// 8 neighbours of two rows then lie in different banks, in the lower triangle but for one.
constexpr int kPitch = kHalf + 8;
static_assert(kSolveThreads == 2 * 4 * kHalf, "four threads for each row of both halves");

// A matrix in shared memory. Of a triangle the rest may be somebody else's.
struct HalfTile {
  double* at;
  int row_stride;
  bool is_triangle;

  __device__ double& operator()(int row, int col) const { return at[row * row_stride + col]; }
};

struct DiagonalTile {
  double halves[kHalf][kPitch];   // both triangles: L, later the inverses
  double between[kHalf][kPitch];  // L below the upper one
  double line[2][2][kHalf];       // of the inverses
  double residual[kSolveRows];
  double upper_x[kHalf];

  // The lower half's rows go upwards and end in column 64: the other corner of the square.
  __device__ HalfTile triangle(int half) {
    if (half == 0) return {&halves[0][0], kPitch, true};
    return {&halves[kHalf - 1][kHalf], -(kPitch + 1), true};
  }
  __device__ HalfTile tile_between() { return {&between[0][0], kPitch, false}; }
};

// at(row, col) is read below and on the diagonal, along rows or along columns.
template <bool kByRows, class F>
__device__ __forceinline__ void load_diagonal(DiagonalTile& tile, const F& at) {
  for (int i = threadIdx.x; i < kSolveRows * kSolveRows; i += kSolveThreads) {
    const int row = kByRows ? i / kSolveRows : i % kSolveRows;
    const int col = kByRows ? i % kSolveRows : i / kSolveRows;
    if (col > row) continue;
    const bool is_between = row >= kHalf && col < kHalf;
    const HalfTile part = is_between ? tile.tile_between() : tile.triangle(row / kHalf);
    part(row % kHalf, col % kHalf) = at(row, col);
  }
}

// Puts inverses in the triangles' place, 256 threads each. Of one's threads, t makes of row t / 4
// every fourth column, from t % 4 on, and reads no other ones later.
__device__ __forceinline__ void invert_triangles(DiagonalTile& tile) {
  const int half = threadIdx.x / (kSolveThreads / 2);
  const int row = threadIdx.x / 4 % kHalf, quarter = threadIdx.x % 4;
  const HalfTile triangle = tile.triangle(half);
  double inverse[kInverseColumns];
#pragma unroll
  for (int n = 0; n < kInverseColumns; ++n) inverse[n] = 4 * n + quarter == row;
  const double reciprocal = 1 / triangle(row, row);
  for (int i = 0; i < kHalf; ++i) {
    double* line = tile.line[i % 2][half];
    if (row == i) {
#pragma unroll
      for (int n = 0; n < kInverseColumns; ++n) {
        line[4 * n + quarter] = inverse[n] *= reciprocal;
      }
    }
    __syncthreads();
    if (row > i) {
      const double minus = -triangle(row, i);
#pragma unroll
      for (int n = 0; n < kInverseColumns; ++n) {
        if (4 * n <= i) inverse[n] = __fma_rn(minus, line[4 * n + quarter], inverse[n]);
      }
    }
  }
  // The last step has read nothing of it, and the barrier of that step is behind the others.
#pragma unroll
  for (int n = 0; n < kInverseColumns; ++n) {
    if (4 * n + quarter <= row) triangle(row, 4 * n + quarter) = inverse[n];
  }
}

// Row threadIdx.x / 8 of the product with x, for all eight threads of it.
__device__ __forceinline__ double multiply(const HalfTile& tile, const double* x) {
  const int row = threadIdx.x / 8, eighth = threadIdx.x % 8;
  double sums[2] = {};  // two chains
#pragma unroll
  for (int n = 0; n < kHalf / 8; ++n) {
    const int col = 8 * n + eighth;
    const double element = tile.is_triangle && col > row ? 0.0 : tile(row, col);
    sums[n % 2] = __fma_rn(element, x[col], sums[n % 2]);
  }
  double sum = sums[0] + sums[1];
#pragma unroll
  for (int bit = 4; bit > 0; bit /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, bit);
  return sum;
}

// Calls tell(row, x) for every row, from the residuals and the inverted triangles.
template <class F>
__device__ __forceinline__ void solve_diagonal(DiagonalTile& tile, const F& tell) {
  const int row = threadIdx.x / 8;
  const bool speaks = threadIdx.x % 8 == 0;  // for its row
  const double upper = multiply(tile.triangle(0), tile.residual);
  if (speaks) {
    tile.upper_x[row] = upper;
    tell(row, upper);
  }
  __syncthreads();
  const double known = multiply(tile.tile_between(), tile.upper_x);
  if (speaks) tile.residual[kHalf + row] -= known;
  __syncthreads();
  const double lower = multiply(tile.triangle(1), tile.residual + kHalf);
  if (speaks) tell(kHalf + row, lower);
}

}  // namespace rome_fast
