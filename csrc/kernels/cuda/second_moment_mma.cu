// Tensor cores by mma.sync: a 128 x 256 tile of the sum a block (128 x 128 of float keys), keys
// copied by cp.async.
//
// A stage of the pipeline holds a few rows of keys, of the columns that the tile's rows and its
// columns stand for. Masked rows, rows beyond n and columns beyond d are filled with zeros by the
// copy itself. Each step's fragments are read while the step before is multiplied.
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_slabs.cuh"
#include "kernels/cuda/second_moment_tiles.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

// The part of a warp: sum[i][j] is that of rows 16 i and columns 8 j on.
constexpr int kRowFragments = 4;
template <class Key>
constexpr int kColFragments = MmaTraits<Key>::kWarpCols / 8;
template <class Key>
using WarpSum = float[kRowFragments][kColFragments<Key>][4];

// What a warp reads of a stage for one step, k rows into it. A fragment of either operand is a
// transposed piece of the slab.
template <class Key>
struct Fragments {
  uint32_t a[kRowFragments][4];
  uint32_t b[kColFragments<Key>][2];

  __device__ __forceinline__ void load(const MmaStage<Key>& stage, int k, int row, int col) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kColFragments<Key>; j += 2) {
      // Matrices: 8 rows of keys, the next 8; then the same of the next 8 columns.
      uint32_t both[4];
      load_matrices_transposed(both, &stage.cols[k + lane % 16][col + 8 * j + lane / 16 * 8]);
      b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
    }
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
      // Matrices: 8 columns of keys, the next 8; then the same of the next 8 rows.
      const int key_row = k + lane / 16 * 8 + lane % 8;
      load_matrices_transposed(a[i], &stage.rows[key_row][row + 16 * i + lane / 8 % 2 * 8]);
    }
  }

  template <int kProducts>
  __device__ __forceinline__ void multiply(WarpSum<Key>& sum) const {
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int j = 0; j < kColFragments<Key>; ++j) multiply_m16n8k16<Key>(sum[i][j], a[i], b[j]);
    }
  }
};

// value = big + small, up to 2^-23 of it.
struct SplitFloat {
  uint32_t big;
  uint32_t small;

  __device__ __forceinline__ explicit SplitFloat(float value)
      : big(round_to_tf32(value)), small(round_to_tf32(value - tf32_as_float(big))) {}
};

template <>
struct Fragments<float> {
  float a[kRowFragments][4];
  float b[kColFragments<float>][2];

  __device__ __forceinline__ void load(const MmaStage<float>& stage, int k, int row, int col) {
    const int lane_row = threadIdx.x % 4;
    const int lane_col = threadIdx.x % 32 / 4;
#pragma unroll
    for (int j = 0; j < kColFragments<float>; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        b[j][e] = stage.cols[k + lane_row + 4 * e][col + 8 * j + lane_col];
      }
    }
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key_col = row + 16 * i + lane_col + 8 * (e % 2);
        a[i][e] = stage.rows[k + lane_row + 4 * (e / 2)][key_col];
      }
    }
  }

  // big big + big small + small big, the smaller terms first; or, with kProducts = 1, big big
  // alone.
  template <int kProducts>
  __device__ __forceinline__ void multiply(WarpSum<float>& sum) const {
    uint32_t b_big[kColFragments<float>][2], b_small[kColFragments<float>][2];
#pragma unroll
    for (int j = 0; j < kColFragments<float>; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const SplitFloat split(b[j][e]);
        b_big[j][e] = split.big, b_small[j][e] = split.small;
      }
    }
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
      uint32_t a_big[4], a_small[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const SplitFloat split(a[i][e]);
        a_big[e] = split.big, a_small[e] = split.small;
      }
#pragma unroll
      for (int j = 0; j < kColFragments<float>; ++j) {
        if constexpr (kProducts == 3) {
          multiply_m16n8k8_tf32(sum[i][j], a_small, b_big[j]);
          multiply_m16n8k8_tf32(sum[i][j], a_big, b_small[j]);
        }
        multiply_m16n8k8_tf32(sum[i][j], a_big, b_big[j]);
      }
    }
  }
};

// to += from; from = 0.
template <class Key>
__device__ __forceinline__ void move_sum(WarpSum<Key>& from, WarpSum<Key>& to) {
  constexpr int kCols = kColFragments<Key>;
#pragma unroll
  for (int i = 0; i < kRowFragments * kCols * 4; ++i) {
    float& value = from[i / 4 / kCols][i / 4 % kCols][i % 4];
    to[i / 4 / kCols][i / 4 % kCols][i % 4] += value;
    value = 0;
  }
}

// Adds a warp's part to the matrix, and begins a new one.
template <class Key, class Sum>
__device__ __forceinline__ void add_warp_sum(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                             int64_t col, WarpSum<Key>& sum, Patch<16>& patch) {
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < kColFragments<Key>; j += 4) {
      add_fragment<4>(p, row + 16 * i, col + 8 * j, patch,
                      [&](int next, int e) { return sum[i][j + next][e]; });
    }
  }
#pragma unroll
  for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
    for (int j = 0; j < 4 * kColFragments<Key>; ++j) sum[i][j / 4][j % 4] = 0;
  }
}

template <class Key>
using Order = TileOrder<MmaTraits<Key>::kTileCols / MmaTraits<Key>::kTileRows>;

template <class Key, class Sum, int kProducts>
__global__ void __launch_bounds__(MmaTraits<Key>::kThreads, 1)
    second_moment_mma_kernel(const SecondMomentParams<Key, Sum> p) {
  using Traits = MmaTraits<Key>;
  constexpr int kStages = Traits::kStages;
  MmaStorage<Key>& s = shared_storage<MmaStorage<Key>>();
  const TilePosition tile = Order<Key>(p.d, Traits::kTileRows).at(blockIdx.x);
  const int64_t tile_row = static_cast<int64_t>(tile.row) * Traits::kTileRows;
  const int64_t tile_col = static_cast<int64_t>(tile.col) * Traits::kTileCols;
  const int warp = threadIdx.x / 32;
  const int row = warp / 4 * Traits::kWarpRows;
  const int col = warp % 4 * Traits::kWarpCols;
  const int slabs = static_cast<int>((p.n + Traits::kDepth - 1) / Traits::kDepth);
  constexpr int slabs_per_flush = kRowsPerFlush / Traits::kDepth;
  constexpr int slabs_per_promotion = Traits::kRowsPerPromotion / Traits::kDepth;
  SlabLoader<Key, Traits::kTileRows> rows(p, tile_row);
  SlabLoader<Key, Traits::kTileCols> cols(p, tile_col);
  const auto fill = [&](int slab) {
    MmaStage<Key>& stage = s.stage[slab % kStages];
    if (slab < slabs) {
      const int64_t first = static_cast<int64_t>(slab) * Traits::kDepth;
      rows.fill(stage.rows, first);
      cols.fill(stage.cols, first);
    }
    commit_copies();
  };
  for (int slab = 0; slab < kStages - 1; ++slab) fill(slab);
  WarpSum<Key> sum = {};
  WarpSum<Key> promoted = {};
  Fragments<Key> even, odd;
  wait_for_copies<kStages - 2>();
  __syncthreads();
  even.load(s.stage[0], 0, row, col);
  for (int slab = 0; slab < slabs; ++slab) {
    odd.load(s.stage[slab % kStages], Traits::kStep, row, col);
    fill(slab + kStages - 1);  // where the slab before this one was
    even.template multiply<kProducts>(sum);
    wait_for_copies<kStages - 2>();
    __syncthreads();  // the next slab is there for all, and all have read this one
    even.load(s.stage[(slab + 1) % kStages], 0, row, col);  // behind the last slab anything
    odd.template multiply<kProducts>(sum);
    const bool flush = slab + 1 == slabs || (slab + 1) % slabs_per_flush == 0;
    if (Traits::kPromotes && (flush || (slab + 1) % slabs_per_promotion == 0)) {
      move_sum<Key>(sum, promoted);
    }
    if (flush) {
      add_warp_sum(p, tile_row + row, tile_col + col, Traits::kPromotes ? promoted : sum,
                   s.patch[warp]);
    }
  }
  wait_for_copies<0>();
}

template <int kProducts, class Key, class Sum>
void launch_mma(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  const dim3 grid(Order<Key>(p.d, MmaTraits<Key>::kTileRows).size());
  launch(second_moment_mma_kernel<Key, Sum, kProducts>, grid, dim3(MmaTraits<Key>::kThreads),
         sizeof(MmaStorage<Key>), stream, p);
}

}  // namespace

template <class Key, class Sum>
void second_moment_mma(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<Key, float>) {
    if (!p.allow_tf32) return launch_mma<3>(p, stream);
  }
  launch_mma<1>(p, stream);
}

#define ROME_FAST_INSTANTIATE(Key, Sum) \
  template void second_moment_mma(const SecondMomentParams<Key, Sum>&, cudaStream_t);
ROME_FAST_INSTANTIATE(float, double)
ROME_FAST_INSTANTIATE(BFloat16, double)
ROME_FAST_INSTANTIATE(Half, double)
ROME_FAST_INSTANTIATE(float, float)
ROME_FAST_INSTANTIATE(BFloat16, float)
ROME_FAST_INSTANTIATE(Half, float)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
