// Tensor cores by mma.sync: a 128 x 128 tile of the sum a block, keys copied by cp.async.
//
// A stage of the pipeline holds a few rows of keys, of the columns that the tile's rows and its
// columns stand for. Masked rows, rows beyond n and columns beyond d are filled with zeros by the
// copy itself.
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_slabs.cuh"
#include "kernels/cuda/second_moment_tiles.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

// The 64 x 32 part of a warp: sum[i][j] is that of rows 16 i and columns 8 j on.
using WarpSum = float[4][4][4];

// One stage of half-precision keys. A fragment of either operand is a transposed piece of the slab.
template <class Key>
__device__ __forceinline__ void multiply_stage(const MmaStage<Key>& stage, int row, int col,
                                               WarpSum& sum) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < MmaTraits<Key>::kDepth; k += 16) {
    uint32_t b[4][2];
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      // Matrices: 8 rows of keys, the next 8; then the same of the next 8 columns.
      uint32_t both[4];
      load_matrices_transposed(both, &stage.cols[k + lane % 16][col + 8 * j + lane / 16 * 8]);
      b[j][0] = both[0], b[j][1] = both[1], b[j + 1][0] = both[2], b[j + 1][1] = both[3];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Matrices: 8 columns of keys, the next 8; then the same of the next 8 rows.
      uint32_t a[4];
      const int key_row = k + lane / 16 * 8 + lane % 8;
      load_matrices_transposed(a, &stage.rows[key_row][row + 16 * i + lane / 8 % 2 * 8]);
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply_m16n8k16<Key>(sum[i][j], a, b[j]);
    }
  }
}

// value = big + small, up to 2^-23 of it.
struct SplitFloat {
  uint32_t big;
  uint32_t small;

  __device__ __forceinline__ explicit SplitFloat(float value)
      : big(round_to_tf32(value)), small(round_to_tf32(value - tf32_as_float(big))) {}
};

// One stage of float keys: big big + big small + small big, the smaller terms first; or, with
// kProducts = 1, big big alone.
template <int kProducts>
__device__ __forceinline__ void multiply_stage_tf32(const MmaStage<float>& stage, int row, int col,
                                                    WarpSum& sum) {
  const int lane_row = threadIdx.x % 4;
  const int lane_col = threadIdx.x % 32 / 4;
#pragma unroll
  for (int k = 0; k < MmaTraits<float>::kDepth; k += 8) {
    uint32_t b_big[4][2], b_small[4][2];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const SplitFloat b(stage.cols[k + lane_row + 4 * e][col + 8 * j + lane_col]);
        b_big[j][e] = b.big, b_small[j][e] = b.small;
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t a_big[4], a_small[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key_col = row + 16 * i + lane_col + 8 * (e % 2);
        const SplitFloat a(stage.rows[k + lane_row + 4 * (e / 2)][key_col]);
        a_big[e] = a.big, a_small[e] = a.small;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (kProducts == 3) {
          multiply_m16n8k8_tf32(sum[i][j], a_small, b_big[j]);
          multiply_m16n8k8_tf32(sum[i][j], a_big, b_small[j]);
        }
        multiply_m16n8k8_tf32(sum[i][j], a_big, b_big[j]);
      }
    }
  }
}

// to += from; from = 0.
__device__ __forceinline__ void move_sum(WarpSum& from, WarpSum& to) {
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    float& value = from[i / 16][i / 4 % 4][i % 4];
    to[i / 16][i / 4 % 4][i % 4] += value;
    value = 0;
  }
}

// Adds a warp's part to the matrix, and begins a new one.
template <class Key, class Sum>
__device__ __forceinline__ void add_warp_sum(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                             int64_t col, WarpSum& sum, Patch<8>& patch) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    add_fragment<8>(p, row + 8 * i, col, patch,
                    [&](int j, int e) { return sum[i / 2][j][i % 2 * 2 + e]; });
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) sum[i / 16][i / 4 % 4][i % 4] = 0;
}

template <class Key, class Sum, int kProducts>
__global__ void __launch_bounds__(MmaTraits<Key>::kThreads, 1)
    second_moment_mma_kernel(const SecondMomentParams<Key, Sum> p) {
  using Traits = MmaTraits<Key>;
  MmaStorage<Key>& s = shared_storage<MmaStorage<Key>>();
  const TilePosition tile = TileOrder<1>(p.d, Traits::kTile).at(blockIdx.x);
  const int warp = threadIdx.x / 32;
  const int row = warp / 4 * 64;
  const int col = warp % 4 * 32;
  const int slabs = static_cast<int>((p.n + Traits::kDepth - 1) / Traits::kDepth);
  const int slabs_per_flush = kRowsPerFlush / Traits::kDepth;
  constexpr int slabs_per_promotion = Traits::kRowsPerPromotion / Traits::kDepth;
  SlabLoader<Key, Sum> loader(p, tile);
  for (int stage = 0; stage < Traits::kStages - 1; ++stage) {
    if (stage < slabs) loader.fill(s.stage[stage]);
    commit_copies();
  }
  WarpSum sum = {};
  WarpSum promoted = {};
  for (int slab = 0; slab < slabs; ++slab) {
    wait_for_copies<Traits::kStages - 2>();
    __syncthreads();  // the stage is there for all, and all are done with the one before it
    const int next = slab + Traits::kStages - 1;
    if (next < slabs) loader.fill(s.stage[next % Traits::kStages]);
    commit_copies();
    const MmaStage<Key>& stage = s.stage[slab % Traits::kStages];
    if constexpr (std::is_same_v<Key, float>) {
      multiply_stage_tf32<kProducts>(stage, row, col, sum);
    } else {
      multiply_stage<Key>(stage, row, col, sum);
    }
    const bool flush = slab + 1 == slabs || (slab + 1) % slabs_per_flush == 0;
    if (flush || (slab + 1) % slabs_per_promotion == 0) move_sum(sum, promoted);
    if (flush) {
      add_warp_sum(p, static_cast<int64_t>(tile.row) * Traits::kTile + row,
                   static_cast<int64_t>(tile.col) * Traits::kTile + col, promoted, s.patch[warp]);
    }
  }
  wait_for_copies<0>();
}

template <int kProducts, class Key, class Sum>
void launch_mma(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  const dim3 grid(TileOrder<1>(p.d, MmaTraits<Key>::kTile).size());
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
