// The kernel of the triangular solves (included by cholesky_solve.cu).
//
// A block takes 64 rows. It multiplies tile after tile of them with the part of x that the rows
// above have found, and at last solves with its diagonal tile. What it reads of L does not depend
// on x, so the next tile is on its way while the block waits.
//
// The critical path at d = 16384: 256 block rows, one after another. From one to the next x is
// stored and seen (through L2 and back, about 0.65 us), then multiplied with a tile that is in
// registers, summed, and multiplied with an inverse that is in registers (two barriers, 11
// shuffles, 18 dependent multiply-adds: 500 cycles, 0.3 us): 0.95 us, in all 0.24 ms. The bytes
// take 0.18 ms (float) or 0.36 ms (double) at 3 TB/s. Longer block rows would make fewer steps,
// but an inverse of 128 rows takes 8 times as long, and only every second multiprocessor two rows.
#pragma once

#include "kernels/cuda/any_vector.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {

constexpr int kSolveRows = 64;
constexpr int kSolveThreads = 256;
constexpr int kSolveWarps = kSolveThreads / kWarp;
constexpr int kTileLines = kSolveRows / kSolveWarps;  // of a tile, a warp
constexpr int kTileSteps = kSolveRows / kWarp;        // along a line, a lane
constexpr int kInverseColumns = kSolveRows * kSolveRows / kSolveThreads;
// The inverse of the diagonal tile takes about as long as 8 steps. It is made this many steps
// before the end: late enough that all blocks do not make theirs at once, while nothing is read.
constexpr int kInverseLead = 16;
static_assert(kTileLines == 8 && kTileSteps == 2, "the reduction over a warp counts on both");

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
  double diagonal[kSolveRows][kSolveRows + 1];  // one more, so that rows are in other banks
  double reciprocal[kSolveRows];
  double line[2][kSolveRows];  // of the inverse
  double x[2][kSolveRows];
  double partial[kSolveWarps][kSolveRows];
  double residual[kSolveRows];
  unsigned block_row;
};

// What no result looks like: a NaN that no arithmetic makes.
constexpr unsigned long long kNotThere = ~0ull;

__device__ __forceinline__ void publish(double* at, double value) {
  unsigned long long bits;
  memcpy(&bits, &value, sizeof(bits));
  // A NaN of the caller's may be this one.
  if (bits == kNotThere) bits = 0x7ff8000000000000ull;
  store_relaxed(reinterpret_cast<unsigned long long*>(at), bits);
}

// Who is not next may look less often: hundreds of blocks wait for the same few addresses.
__device__ __forceinline__ double wait_for(const double* at, bool is_next) {
  unsigned long long bits = load_relaxed(reinterpret_cast<const unsigned long long*>(at));
  while (bits == kNotThere) {
    if (!is_next) __nanosleep(250);
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
                                          T (&tile)[kTileLines][kTileSteps]) {
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
      tile[l][s] = inside ? from[l * line_stride + s * step_stride] : T(0);
    }
  }
}

// sums of a thread: of its 8 rows over its 2 columns, or of its 2 rows over its 8 columns.
template <bool kByRows>
constexpr int kSums = kByRows ? kTileLines : kTileSteps;

template <class T, bool kByRows>
__device__ __forceinline__ void add_tile(const T (&tile)[kTileLines][kTileSteps], const double* x,
                                         double (&sums)[kSums<kByRows>]) {
  const int line0 = threadIdx.x / kWarp * kTileLines, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int s = 0; s < kTileSteps; ++s) {
#pragma unroll
    for (int l = 0; l < kTileLines; ++l) {
      const double x_j = x[kByRows ? lane + s * kWarp : line0 + l];
      double& sum = sums[kByRows ? l : s];
      sum = __fma_rn(double(tile[l][s]), x_j, sum);
    }
  }
}

// sums += L[row0:, begin:end] x[begin:end], in steps of a tile.
template <class T, bool kByRows>
__device__ void add_tiles(const Triangle<T>& p, SolveStorage& shared, int64_t row0, int64_t begin,
                          int64_t end, double (&sums)[kSums<kByRows>]) {
  T tile[kTileLines][kTileSteps], next[kTileLines][kTileSteps];
  if (begin < end) load_tile<T, kByRows>(p, row0, begin, next);
  for (int64_t col = begin; col < end; col += kSolveRows) {
#pragma unroll
    for (int l = 0; l < kTileLines; ++l) {
#pragma unroll
      for (int s = 0; s < kTileSteps; ++s) tile[l][s] = next[l][s];
    }
    if (col + kSolveRows < end) load_tile<T, kByRows>(p, row0, col + kSolveRows, next);
    // Two of them, so that one barrier a step is enough.
    double* x = shared.x[col / kSolveRows % 2];
    if (threadIdx.x < kSolveRows) {
      const int64_t j = col + threadIdx.x;
      x[threadIdx.x] = wait_for(p.x + j * p.x_stride, col + 3 * kSolveRows > row0);
    }
    __syncthreads();
    add_tile<T, kByRows>(tile, x, sums);
  }
}

// Puts the inverse of the diagonal tile into shared.diagonal. Thread t makes of row t / 4 every
// fourth column, from t % 4 on, and reads no other ones later.
template <class T, bool kByRows>
__device__ void invert_diagonal(const Triangle<T>& p, SolveStorage& shared, int64_t row0) {
  for (int i = threadIdx.x; i < kSolveRows * kSolveRows; i += kSolveThreads) {
    const int row = kByRows ? i / kSolveRows : i % kSolveRows;
    const int col = kByRows ? i % kSolveRows : i / kSolveRows;
    double value = row == col;  // behind the last row
    if (row0 + row < p.d && col <= row) {
      value = double(p.factor[(row0 + row) * p.row_stride + (row0 + col) * p.col_stride]);
    }
    shared.diagonal[row][col] = value;
    if (row == col) shared.reciprocal[row] = 1 / value;
  }
  const int row = threadIdx.x / 4, quarter = threadIdx.x % 4;
  double inverse[kInverseColumns];
#pragma unroll
  for (int n = 0; n < kInverseColumns; ++n) inverse[n] = 4 * n + quarter == row;
  __syncthreads();
  for (int i = 0; i < kSolveRows; ++i) {
    double* line = shared.line[i % 2];
    if (row == i) {
#pragma unroll
      for (int n = 0; n < kInverseColumns; ++n) {
        line[4 * n + quarter] = inverse[n] *= shared.reciprocal[i];
      }
    }
    __syncthreads();
    if (row > i) {
      const double minus = -shared.diagonal[row][i];
#pragma unroll
      for (int n = 0; n < kInverseColumns; ++n) {
        inverse[n] = __fma_rn(minus, line[4 * n + quarter], inverse[n]);
      }
    }
  }
  // The last step has read nothing of it, and the barrier of that step is behind the others.
#pragma unroll
  for (int n = 0; n < kInverseColumns; ++n) shared.diagonal[row][4 * n + quarter] = inverse[n];
}

// The sum of row threadIdx.x / 4, for all four threads of it.
template <bool kByRows>
__device__ __forceinline__ double sum_of_row(SolveStorage& shared, double (&sums)[kSums<kByRows>]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  double sum;
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
    sum = shared.partial[2 * quarter][row] + shared.partial[2 * quarter + 1][row];
  }
  sum += __shfl_xor_sync(kWholeWarp, sum, 2);
  return sum + __shfl_xor_sync(kWholeWarp, sum, 1);
}

template <class T, bool kByRows>
__global__ void __launch_bounds__(kSolveThreads, 2) solve_triangle_kernel(Triangle<T> p) {
  SolveStorage& shared = shared_storage<SolveStorage>();
  // A block waits for those that came before it: however few run at once, the first of them can.
  if (threadIdx.x == 0) shared.block_row = atomicAdd(p.ticket, 1u) + 1u;
  __syncthreads();
  const int64_t row0 = int64_t(shared.block_row) * kSolveRows;
  const int64_t lead = row0 < kInverseLead * kSolveRows ? 0 : row0 - kInverseLead * kSolveRows;
  double sums[kSums<kByRows>] = {};
  const int row = threadIdx.x / 4, quarter = threadIdx.x % 4;
  const double rhs = row0 + row < p.d ? p.rhs.at(row0 + row) : 0;
  add_tiles<T, kByRows>(p, shared, row0, 0, lead, sums);
  invert_diagonal<T, kByRows>(p, shared, row0);
  add_tiles<T, kByRows>(p, shared, row0, lead, row0, sums);
  double inverse[kInverseColumns];  // read here, ahead of the last barriers
#pragma unroll
  for (int n = 0; n < kInverseColumns; ++n) inverse[n] = shared.diagonal[row][4 * n + quarter];
  const double sum = sum_of_row<kByRows>(shared, sums);
  if (quarter == 0) shared.residual[row] = rhs - sum;
  __syncthreads();
  double x[2] = {};  // two chains
#pragma unroll
  for (int n = 0; n < kInverseColumns; ++n) {
    x[n % 2] = __fma_rn(inverse[n], shared.residual[4 * n + quarter], x[n % 2]);
  }
  double x_i = x[0] + x[1];
  x_i += __shfl_xor_sync(kWholeWarp, x_i, 2);
  x_i += __shfl_xor_sync(kWholeWarp, x_i, 1);
  if (quarter == 0 && row0 + row < p.d) publish(p.x + (row0 + row) * p.x_stride, x_i);
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
