// The kernel of the triangular solves (included by cholesky_solve.cu).
//
// A block takes 128 rows. It multiplies tile after tile of them with the part of x that the rows
// above have found, and at last solves with its diagonal tile: 64 rows with an inverse, the 64
// below them with the tile between and another inverse. What it reads of L does not depend on x, so
// a tile is read, and made double, while the block waits for x.
//
// The critical path at d = 16384: 128 block rows, one after another. From one to the next x is
// stored and seen (through L2 and back, about 0.8 us), then multiplied with a tile that is in
// registers (32 multiply-adds of a thread, 256 cycles), summed (300), and multiplied three times
// with 64 x 64 elements in shared memory (250 each): 1,350 cycles, 0.8 us. In all an estimated 1.6
// us, 0.2 ms; the bytes take 0.13 ms (float) or 0.25 ms (double) at 4.3 TB/s. With an inverse of
// all 128 rows the last step is no shorter, and making it takes 8 times as long. Block rows of 256
// would not fit a multiprocessor, and those of 64 are handed on twice as often.
#pragma once

#include "kernels/cuda/any_vector.cuh"
#include "kernels/cuda/cholesky_solve_diagonal.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {

constexpr int kSolveWarps = kSolveThreads / kWarp;
constexpr int kTileLines = kSolveRows / kSolveWarps;  // of a tile, a warp
constexpr int kTileSteps = kSolveRows / kWarp;        // along a line, a lane
// The inverses take about as long as 3 steps. They are made this many steps before the end: late
// enough that all blocks do not make theirs at once, while nothing is read.
constexpr int kInverseLead = 8;
static_assert(kTileLines == 8 && kTileSteps == 4, "the sum over a row counts on both");

// x_i = (rhs_i - sum over j < i of L_ij x_j) / L_ii. The solve with L^T is this one from the other
// end: all strides are negative then, and the pointers are those of the last elements.
template <class T>
struct Triangle {
  const T* factor;
  int64_t row_stride;
  int64_t col_stride;
  int64_t d;
  AnyVector rhs;
  double* x;  // all bits set where it is not there yet
  int64_t x_stride;
  unsigned* ticket;  // all bits set at the start
};

struct SolveStorage {
  DiagonalTile diagonal;
  double x[2][kSolveRows];
  double partial[kSolveWarps][kSolveRows + 1];  // one more, so that four rows are in other banks
  unsigned block_row;
};
static_assert(sizeof(SolveStorage) <= 99 << 10, "the shared memory of sm_86 and sm_89");

// What no result looks like: a NaN that no arithmetic makes.
constexpr unsigned long long kNotThere = ~0ull;

__device__ __forceinline__ void publish(double* at, double value) {
  unsigned long long bits;
  memcpy(&bits, &value, sizeof(bits));
  // A NaN of the caller's may be this one.
  if (bits == kNotThere) bits = 0x7ff8000000000000ull;
  store_relaxed(reinterpret_cast<unsigned long long*>(at), bits);
}

// Who has steps to go until it is next looks less often: a hundred blocks wait for the same few
// addresses.
__device__ __forceinline__ double wait_for(const double* at, int64_t steps_to_go) {
  const unsigned nanoseconds = 100 * static_cast<unsigned>(min(steps_to_go, int64_t{8}));
  unsigned long long bits = load_relaxed(reinterpret_cast<const unsigned long long*>(at));
  while (bits == kNotThere) {
    if (nanoseconds > 0) __nanosleep(nanoseconds);
    bits = load_relaxed(reinterpret_cast<const unsigned long long*>(at));
  }
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// A tile as lines of neighbouring elements: rows, or columns. A warp has 8 lines and its lanes run
// along them, so that a load is of 32 neighbours.
template <class T, bool kByRows>
__device__ __forceinline__ void load_tile(const Triangle<T>& p, int64_t row0, int64_t col0,
                                          double (&tile)[kTileLines][kTileSteps]) {
  const int line0 = threadIdx.x / kWarp * kTileLines, lane = threadIdx.x % kWarp;
  const int64_t line_stride = kByRows ? p.row_stride : p.col_stride;
  const int64_t step_stride = kWarp * (kByRows ? p.col_stride : p.row_stride);
  const int64_t row = row0 + (kByRows ? line0 : lane), col = col0 + (kByRows ? lane : line0);
  const T* from = p.factor + row * p.row_stride + col * p.col_stride;
#pragma unroll
  for (int l = 0; l < kTileLines; ++l) {
#pragma unroll
    for (int s = 0; s < kTileSteps; ++s) {
      const bool inside = row + (kByRows ? l : s * kWarp) < p.d;
      tile[l][s] = inside ? double(from[l * line_stride + s * step_stride]) : 0.0;
    }
  }
}

// sums of a thread: of its 8 rows over its 4 columns, or of its 4 rows over its 8 columns.
template <bool kByRows>
constexpr int kSums = kByRows ? kTileLines : kTileSteps;

template <bool kByRows>
__device__ __forceinline__ void add_tile(const double (&tile)[kTileLines][kTileSteps],
                                         const double* x, double (&sums)[kSums<kByRows>]) {
  const int line0 = threadIdx.x / kWarp * kTileLines, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int s = 0; s < kTileSteps; ++s) {
#pragma unroll
    for (int l = 0; l < kTileLines; ++l) {
      const double x_j = x[kByRows ? lane + s * kWarp : line0 + l];
      double& sum = sums[kByRows ? l : s];
      sum = __fma_rn(tile[l][s], x_j, sum);
    }
  }
}

// sums += L[row0:, begin:end] x[begin:end], in steps of a tile, which is asked for before the wait
// for its part of x.
template <class T, bool kByRows>
__device__ void add_tiles(const Triangle<T>& p, SolveStorage& shared, int64_t row0, int64_t begin,
                          int64_t end, double (&sums)[kSums<kByRows>]) {
  for (int64_t col = begin; col < end; col += kSolveRows) {
    double tile[kTileLines][kTileSteps];
    load_tile<T, kByRows>(p, row0, col, tile);
    // Two of them, so that one barrier a step is enough.
    double* x = shared.x[col / kSolveRows % 2];
    if (threadIdx.x < kSolveRows) {
      const int64_t j = col + threadIdx.x;
      x[threadIdx.x] = wait_for(p.x + j * p.x_stride, (row0 - col) / kSolveRows - 1);
    }
    __syncthreads();
    add_tile<kByRows>(tile, x, sums);
  }
}

// The sum of row threadIdx.x / 4, for all four threads of it.
template <bool kByRows>
__device__ __forceinline__ double sum_of_row(SolveStorage& shared, double (&sums)[kSums<kByRows>]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  double sum = 0;
  if constexpr (kByRows) {
    // Halves are exchanged as long as there are two: 9 shuffles instead of 40.
#pragma unroll
    for (int half = kTileLines / 2, bit = kWarp / 2; half > 0; half /= 2, bit /= 2) {
#pragma unroll
      for (int l = 0; l < half; ++l) {
        const bool upper = lane & bit;
        const double kept = upper ? sums[l + half] : sums[l];
        const double given = upper ? sums[l] : sums[l + half];
        sums[l] = kept + __shfl_xor_sync(kWholeWarp, given, bit);
      }
    }
    sum = sums[0];
  } else {
#pragma unroll
    for (int s = 0; s < kTileSteps; ++s) shared.partial[warp][lane + s * kWarp] = sums[s];
    __syncthreads();
    const int row = threadIdx.x / 4, quarter = threadIdx.x % 4;
#pragma unroll
    for (int w = 0; w < kSolveWarps / 4; ++w) {
      sum += shared.partial[quarter * kSolveWarps / 4 + w][row];
    }
  }
  sum += __shfl_xor_sync(kWholeWarp, sum, 2);
  return sum + __shfl_xor_sync(kWholeWarp, sum, 1);
}

template <class T, bool kByRows>
__global__ void __launch_bounds__(kSolveThreads, 1) solve_triangle_kernel(Triangle<T> p) {
  SolveStorage& shared = shared_storage<SolveStorage>();
  // A block waits for those that came before it: however few run at once, the first of them can.
  if (threadIdx.x == 0) shared.block_row = atomicAdd(p.ticket, 1u) + 1u;
  __syncthreads();
  const int64_t row0 = int64_t(shared.block_row) * kSolveRows;
  const int64_t lead = row0 < kInverseLead * kSolveRows ? 0 : row0 - kInverseLead * kSolveRows;
  double sums[kSums<kByRows>] = {};
  const int row = threadIdx.x / 4;
  double& residual = shared.diagonal.residual[row];
  if (threadIdx.x % 4 == 0) residual = row0 + row < p.d ? p.rhs.at(row0 + row) : 0;
  add_tiles<T, kByRows>(p, shared, row0, 0, lead, sums);
  load_diagonal<kByRows>(shared.diagonal, [&](int row, int col) {
    if (row0 + row >= p.d) return row == col ? 1.0 : 0.0;
    return double(p.factor[(row0 + row) * p.row_stride + (row0 + col) * p.col_stride]);
  });
  __syncthreads();
  invert_triangles(shared.diagonal);
  add_tiles<T, kByRows>(p, shared, row0, lead, row0, sums);
  const double sum = sum_of_row<kByRows>(shared, sums);
  if (threadIdx.x % 4 == 0) residual -= sum;
  __syncthreads();  // the inverses are there too, if no tile was waited for
  solve_diagonal(shared.diagonal, [&](int row, double x) {
    if (row0 + row < p.d) publish(p.x + (row0 + row) * p.x_stride, x);
  });
}

// The definition, one column after another.
template <class T>
__global__ void __launch_bounds__(1024) solve_triangle_naive_kernel(Triangle<T> p) {
  for (int64_t i = threadIdx.x; i < p.d; i += blockDim.x) p.x[i * p.x_stride] = p.rhs.at(i);
  for (int64_t j = 0; j < p.d; ++j) {
    const T* column = p.factor + j * p.col_stride;
    __syncthreads();
    const double x_j = p.x[j * p.x_stride] / double(column[j * p.row_stride]);
    __syncthreads();
    if (threadIdx.x == 0) p.x[j * p.x_stride] = x_j;
    for (int64_t i = j + 1 + threadIdx.x; i < p.d; i += blockDim.x) {
      p.x[i * p.x_stride] -= double(column[i * p.row_stride]) * x_j;
    }
  }
}

}  // namespace rome_fast
