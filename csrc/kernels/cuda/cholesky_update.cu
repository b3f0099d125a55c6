// Once a = L^-1 x is known, the determinants 1 +- |a_1..j|^2 say what happens to each column, and
// every row can be walked by itself, from its diagonal to column 0 with a running sum. Half of the
// factor is read and written: 2.1 GB or 0.5 ms at 4.3 TB/s for d = 16384 in float64.
//
// A block walks down 32 rows, 128 columns at a time, and asks for the next ones before it works on
// these: 16 KB of float or 32 KB of double on their way. At d = 6400 that is 1.5 blocks a
// multiprocessor, and 20 to 40 KB are on their way at 4.3 TB/s and 0.8 us. The longest rows take
// 128 such steps at d = 16384, of an estimated 1 us: less than the bytes.
#include <cstdlib>

#include "kernels/cuda/cholesky_update.h"
#include "kernels/cuda/cholesky_update_steps.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

constexpr int kRows = kWarp;  // of a block
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kColumns = 16;                // of a warp at a time, and loads of a thread
constexpr int kChunk = kWarps * kColumns;   // columns of a block at a time
constexpr int kLineRows = kRows / kWarps;   // of a warp, where lanes lie along rows
constexpr int kLineSteps = kChunk / kWarp;  // of a lane along such a row
static_assert(kLineRows * kLineSteps == kColumns, "a thread has as many elements either way");
static_assert(kChunk % kRows == 0, "the diagonal of a block lies in one chunk");

template <class T>
struct UpdateStorage {
  ColumnStep steps[2][kChunk];
  double products[kWarps][kRows];
  T tile[kChunk][kRows + 1];  // one more, so that neighbours along a row are in other banks
};

struct Place {
  int row;
  int col;
};

// Where element i of a thread lies in a chunk: lanes go along the rows, or along the columns.
template <bool kByRows>
__device__ __forceinline__ Place place_of(int i) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  if (kByRows) return {kLineRows * warp + i / kLineSteps, lane + kWarp * (i % kLineSteps)};
  return {lane, kColumns * warp + i};
}

// Calls f(element, value) for a thread's elements of the triangle, in the chunk from (row, col) on.
template <bool kByRows, class T, class F>
__device__ __forceinline__ void for_each(const CholeskyUpdateParams<T>& p, int64_t row, int64_t col,
                                         T (&values)[kColumns], const F& f) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const Place place = place_of<kByRows>(i);
    const int64_t r = row + place.row, c = col + place.col;
    if (r < p.d && c <= r) f(p.factor[r * p.row_stride + c * p.col_stride], values[i]);
  }
}

template <bool kByRows, class T>
__device__ __forceinline__ void load_chunk(const CholeskyUpdateParams<T>& p, int64_t row,
                                           int64_t col, T (&values)[kColumns]) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) values[i] = 0;
  for_each<kByRows>(p, row, col, values, [](const T& element, T& value) { value = element; });
}

template <bool kByRows, class T>
__device__ __forceinline__ void store_tile(UpdateStorage<T>& shared, const T (&values)[kColumns]) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const Place place = place_of<kByRows>(i);
    shared.tile[place.col][place.row] = values[i];
  }
}

template <bool kByRows, class T>
__device__ __forceinline__ void load_from_tile(const UpdateStorage<T>& shared,
                                               T (&values)[kColumns]) {
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const Place place = place_of<kByRows>(i);
    values[i] = shared.tile[place.col][place.row];
  }
}

// A warp's 16 columns of the chunk, each lane in a row of its own. sum is that of old a over the
// chunks behind, and becomes that with this one.
template <class T>
__device__ __forceinline__ void update_columns(UpdateStorage<T>& shared, const ColumnStep* steps,
                                               double& sum, T (&values)[kColumns]) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  double product = 0;
#pragma unroll
  for (int i = 0; i < kColumns; ++i) product += double(values[i]) * steps[i].a;
  shared.products[warp][lane] = product;
  __syncthreads();
  double behind = sum;
#pragma unroll
  for (int w = kWarps - 1; w >= 0; --w) {
    const double other = shared.products[w][lane];
    if (w > warp) behind += other;
    sum += other;
  }
#pragma unroll
  for (int i = kColumns - 1; i >= 0; --i) {
    const ColumnStep step = steps[i];
    const double old = values[i];
    values[i] = static_cast<T>(old * step.scale + behind * step.weight);
    behind += old * step.a;
  }
}

// The step of a column that this thread fetches for its block.
template <class T>
__device__ __forceinline__ ColumnStep load_step(const CholeskyUpdateParams<T>& p, int64_t col) {
  const int64_t c = col + threadIdx.x;
  return threadIdx.x < kChunk && c < p.d ? p.steps[c] : ColumnStep{0.0, 0.0, 0.0};
}

// A block has 32 rows. Where a row lies in one piece, lanes go along it to read and to write, and
// shared memory turns what they have.
template <class T, bool kByRows>
__global__ void __launch_bounds__(kThreads) update_rows_kernel(CholeskyUpdateParams<T> p) {
  if (!*p.applied) return;
  UpdateStorage<T>& shared = shared_storage<UpdateStorage<T>>();
  // The longest rows first, which run longest.
  const int64_t row = int64_t(gridDim.x - 1 - blockIdx.x) * kRows;
  const int first_step = threadIdx.x / kWarp * kColumns;
  int64_t col = row / kChunk * kChunk;  // with the diagonal
  T next[kColumns];
  load_chunk<kByRows>(p, row, col, next);
  ColumnStep next_step = load_step(p, col);
  double sum = 0;
  for (; col >= 0; col -= kChunk) {
    T values[kColumns];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] = next[i];
    // Two of them: a warp may still be at work with those of the chunk before.
    ColumnStep* steps = shared.steps[col / kChunk % 2];
    if (threadIdx.x < kChunk) steps[threadIdx.x] = next_step;
    if (col > 0) {
      load_chunk<kByRows>(p, row, col - kChunk, next);
      next_step = load_step(p, col - kChunk);
    }
    if (kByRows) store_tile<true>(shared, values);
    __syncthreads();
    if (kByRows) load_from_tile<false>(shared, values);
    update_columns(shared, steps + first_step, sum, values);
    if (kByRows) {
      store_tile<false>(shared, values);
      __syncthreads();
      load_from_tile<true>(shared, values);
    }
    for_each<kByRows>(p, row, col, values, [](T& element, T value) { element = value; });
  }
}

template <class T>
__global__ void update_naive_kernel(CholeskyUpdateParams<T> p) {
  if (!*p.applied) return;
  for (int64_t row = 0; row < p.d; ++row) {
    double sum = 0;
    for (int64_t col = row; col >= 0; --col) {
      T& element = p.factor[row * p.row_stride + col * p.col_stride];
      const double old = element;
      element = static_cast<T>(old * p.steps[col].scale + sum * p.steps[col].weight);
      sum += old * p.steps[col].a;
    }
  }
}

template <class T>
__global__ void find_steps_naive_kernel(CholeskyUpdateParams<T> p) {
  double t = 1.0;
  bool sound = true;
  for (int64_t j = 0; j < p.d; ++j) {
    const double a = p.a[j], previous = t;
    t += p.downdate ? -a * a : a * a;
    sound &= t > least_determinant<T>() && isfinite(t);
    sound &= isfinite(static_cast<double>(p.factor[j * (p.row_stride + p.col_stride)]));
    const double weight = a / (sqrt(t) * sqrt(previous));
    p.steps[j] = {sqrt(t / previous), p.downdate ? -weight : weight, a};
  }
  *p.applied = sound;
}

}  // namespace

template <class T>
void cholesky_update(const CholeskyUpdateParams<T>& params, cudaStream_t stream) {
  const dim3 blocks(static_cast<unsigned>((params.d + kRows - 1) / kRows));
  const auto update_rows =
      std::abs(params.col_stride) == 1 ? update_rows_kernel<T, true> : update_rows_kernel<T, false>;
  launch(find_steps_kernel<T>, dim3(1), dim3(kScanThreads), sizeof(ScanStorage), stream, params);
  launch(update_rows, blocks, dim3(kThreads), sizeof(UpdateStorage<T>), stream, params);
}

template <class T>
void cholesky_update_naive(const CholeskyUpdateParams<T>& params, cudaStream_t stream) {
  launch(find_steps_naive_kernel<T>, dim3(1), dim3(1), 0, stream, params);
  launch(update_naive_kernel<T>, dim3(1), dim3(1), 0, stream, params);
}

#define ROME_FAST_INSTANTIATE(T)                                               \
  template void cholesky_update(const CholeskyUpdateParams<T>&, cudaStream_t); \
  template void cholesky_update_naive(const CholeskyUpdateParams<T>&, cudaStream_t);
ROME_FAST_INSTANTIATE(float)
ROME_FAST_INSTANTIATE(double)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
