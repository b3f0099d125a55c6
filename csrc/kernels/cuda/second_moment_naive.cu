// The plain kernel: a tile of the sum a block, fused multiply-adds in the type of the sum.
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_tiles.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

constexpr int kTile = 64;  // rows and columns
constexpr int kDepth = 16;
constexpr int kThreads = 256;
constexpr int kSide = 4;              // a thread has as many rows and columns,
constexpr int kStep = kTile / kSide;  // this far apart
static_assert(kStep * kStep == kThreads, "threads cover the tile");

template <class Sum>
struct NaiveStorage {
  Sum rows[kDepth][kTile];
  Sum cols[kDepth][kTile];
};

// to[kDepth][kTile] = the keys' rows from first_row on, columns from first_col on, zero elsewhere.
template <class Key, class Sum>
__device__ void load_slab(const SecondMomentParams<Key, Sum>& p, int64_t first_row,
                          int64_t first_col, Sum (&to)[kDepth][kTile]) {
  for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
    const int64_t row = first_row + i / kTile;
    const int64_t col = first_col + i % kTile;
    const bool inside = row < p.n && col < p.d;
    const bool keep = inside && (p.mask == nullptr || p.mask[row * p.mask_stride]);
    const Key* key = p.keys + row * p.keys_row_stride + col * p.keys_col_stride;
    to[i / kTile][i % kTile] = keep ? static_cast<Sum>(widen(*key)) : Sum(0);
  }
}

template <class Key, class Sum>
__global__ void __launch_bounds__(kThreads)
    second_moment_naive_kernel(const SecondMomentParams<Key, Sum> p) {
  NaiveStorage<Sum>& s = shared_storage<NaiveStorage<Sum>>();
  const TilePosition tile = TileOrder<1>(p.d, kTile).at(blockIdx.x);
  const int64_t tile_row = static_cast<int64_t>(tile.row) * kTile;
  const int64_t tile_col = static_cast<int64_t>(tile.col) * kTile;
  const int row = threadIdx.x / kStep;
  const int col = threadIdx.x % kStep;
  Sum sum[kSide][kSide] = {};
  for (int64_t first = 0; first < p.n; first += kDepth) {
    __syncthreads();
    load_slab(p, first, tile_row, s.rows);
    load_slab(p, first, tile_col, s.cols);
    __syncthreads();
    // Short sums of their own: rounding grows with the number of terms.
    Sum slab[kSide][kSide] = {};
    for (int k = 0; k < kDepth; ++k) {
#pragma unroll
      for (int i = 0; i < kSide * kSide; ++i) {
        const int r = i / kSide, c = i % kSide;
        slab[r][c] += s.rows[k][row + r * kStep] * s.cols[k][col + c * kStep];
      }
    }
#pragma unroll
    for (int i = 0; i < kSide * kSide; ++i) sum[i / kSide][i % kSide] += slab[i / kSide][i % kSide];
  }
#pragma unroll
  for (int i = 0; i < kSide * kSide; ++i) {
    const int r = i / kSide, c = i % kSide;
    add_element(p, tile_row + row + r * kStep, tile_col + col + c * kStep, sum[r][c]);
  }
}

}  // namespace

template <class Key, class Sum>
void second_moment_naive(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  const dim3 grid(TileOrder<1>(p.d, kTile).size());
  launch(second_moment_naive_kernel<Key, Sum>, grid, dim3(kThreads), sizeof(NaiveStorage<Sum>),
         stream, p);
}

#define ROME_FAST_INSTANTIATE(Key, Sum) \
  template void second_moment_naive(const SecondMomentParams<Key, Sum>&, cudaStream_t);
ROME_FAST_INSTANTIATE(double, double)
ROME_FAST_INSTANTIATE(float, double)
ROME_FAST_INSTANTIATE(BFloat16, double)
ROME_FAST_INSTANTIATE(Half, double)
ROME_FAST_INSTANTIATE(float, float)
ROME_FAST_INSTANTIATE(BFloat16, float)
ROME_FAST_INSTANTIATE(Half, float)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
