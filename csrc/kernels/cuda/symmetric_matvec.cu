// A block multiplies one tile both ways: with the part of x beside it and with the part above it.
// What a tile gives is stored apart, and a second kernel sums for every element of y over the
// tiles, in their order: the same bits in every run.
//
// A tile of 256x256 is 256 KB of float, and what it gives, written and read again, 8 KB: 3 %.
// d = 16384 has 2080 tiles of the triangle, 16 for each of 132 multiprocessors; 0.54 GB in float
// or 1.07 GB in double, 0.18 or 0.36 ms at 3 TB/s.
#include "kernels/cuda/chosen.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/symmetric_matvec.h"

namespace rome_fast {
namespace {

constexpr int kTile = 256;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSteps = kTile / kWarp;  // of a lane along a line
// Lines at once: 32 or 16 loads of a thread on their way, 64 KB of the two blocks that share a
// multiprocessor (128 registers); 18 KB are on their way at 3 TB/s and 0.8 us.
template <class T>
constexpr int kBatch = sizeof(T) == 8 ? 2 : 4;

// Lines of neighbouring elements: the rows of a row-major matrix, the columns of a column-major
// one. Seen so the triangle is a lower or an upper one.
template <class T>
struct Lines {
  const T* at;
  int64_t line_stride;
  int64_t stride;  // along a line
  int64_t d;
  bool lower;
  AnyVector x;
  double* partials;  // [blocks, d]: of block b of y, row c is what tile (b, c) or (c, b) gives
};

struct TileStorage {
  double x[kTile];               // beside the lines
  double along[kTile];           // sums along each line
  double across[kWarps][kTile];  // each warp's sums over its lines
};

// The elements of line `line` that a lane has, 0 outside the triangle.
template <class T>
__device__ __forceinline__ void load_line(const Lines<T>& p, int64_t line, int64_t first,
                                          T (&out)[kSteps]) {
  const T* from = p.at + line * p.line_stride;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t i = first + s * kWarp;
    const bool inside = line < p.d && (p.lower ? i <= line : i >= line && i < p.d);
    out[s] = inside ? from[i * p.stride] : T(0);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) multiply_tile_kernel(Lines<T> p) {
  const int64_t line_block = p.lower ? blockIdx.y : blockIdx.x;
  const int64_t block = p.lower ? blockIdx.x : blockIdx.y;  // along the lines
  if (blockIdx.x > blockIdx.y) return;
  TileStorage& shared = shared_storage<TileStorage>();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t first = block * kTile + lane;
  double x[kSteps], across[kSteps] = {};
  p.x.load(first, kWarp, p.d, x);
  const int64_t beside = line_block * kTile + threadIdx.x;
  shared.x[threadIdx.x] = beside < p.d ? p.x.at(beside) : 0.0;
  __syncthreads();
  for (int n = kBatch<T> * warp; n < kTile; n += kBatch<T> * kWarps) {
    const int64_t line = line_block * kTile + n;
    T elements[kBatch<T>][kSteps];
#pragma unroll
    for (int l = 0; l < kBatch<T>; ++l) load_line(p, line + l, first, elements[l]);
#pragma unroll
    for (int l = 0; l < kBatch<T>; ++l) {
      const double x_line = shared.x[n + l];
      double sum = 0;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const double element = double(elements[l][s]);
        sum = __fma_rn(element, x[s], sum);
        // The diagonal counts once.
        const double other = first + s * kWarp == line + l ? 0.0 : element;
        across[s] = __fma_rn(other, x_line, across[s]);
      }
      sum = warp_sum(sum);
      if (lane == 0) shared.along[n + l] = sum;
    }
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) shared.across[warp][lane + s * kWarp] = across[s];
  __syncthreads();
  const int t = threadIdx.x;
  double over_lines = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) over_lines += shared.across[w][t];
  const int64_t of_line = line_block * kTile + t, of_position = block * kTile + t;
  if (block == line_block) {
    if (of_line < p.d) p.partials[block * p.d + of_line] = shared.along[t] + over_lines;
    return;
  }
  if (of_line < p.d) p.partials[block * p.d + of_line] = shared.along[t];
  if (of_position < p.d) p.partials[line_block * p.d + of_position] = over_lines;
}

__global__ void __launch_bounds__(kThreads)
    sum_partials_kernel(const double* partials, int64_t blocks, int64_t d, double* y) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= d) return;
  double sum = 0;
#pragma unroll 8
  for (int64_t b = 0; b < blocks; ++b) sum += partials[b * d + i];
  y[i] = sum;
}

// The definition, a thread an element.
template <class T>
__global__ void __launch_bounds__(kThreads) multiply_naive_kernel(SymmetricMatvecParams<T> p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.d) return;
  double sum = 0;
  for (int64_t j = 0; j < p.d; ++j) {
    const int64_t row = max(i, j), col = min(i, j);
    sum += double(p.matrix[row * p.row_stride + col * p.col_stride]) * p.x.at(j);
  }
  p.y[i] = sum;
}

int64_t blocks_of(int64_t d) { return (d + kTile - 1) / kTile; }

}  // namespace

int64_t symmetric_matvec_bytes(int64_t d) { return blocks_of(d) * d * sizeof(double); }

template <class T>
void symmetric_matvec(const SymmetricMatvecParams<T>& p, cudaStream_t stream) {
  static_assert(kTile == kThreads, "a thread has an element of what a tile gives");
  const unsigned blocks = static_cast<unsigned>(blocks_of(p.d));
  if (naive_is_chosen()) {
    return launch(multiply_naive_kernel<T>, dim3(blocks), dim3(kThreads), 0, stream, p);
  }
  const bool lower = p.row_stride != 1;
  const Lines<T> lines{p.matrix,
                       lower ? p.row_stride : p.col_stride,
                       lower ? p.col_stride : p.row_stride,
                       p.d,
                       lower,
                       p.x,
                       p.partials};
  launch(multiply_tile_kernel<T>, dim3(blocks, blocks), dim3(kThreads), sizeof(TileStorage), stream,
         lines);
  launch(sum_partials_kernel, dim3(blocks), dim3(kThreads), 0, stream,
         static_cast<const double*>(p.partials), int64_t(blocks), p.d, p.y);
}

template void symmetric_matvec(const SymmetricMatvecParams<float>&, cudaStream_t);
template void symmetric_matvec(const SymmetricMatvecParams<double>&, cudaStream_t);

}  // namespace rome_fast
