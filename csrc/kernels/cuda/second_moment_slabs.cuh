// The stages of second_moment_mma.cu: their sizes, and how keys get into them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_tiles.cuh"

namespace rome_fast {

template <class Key>
struct MmaTraits {
  static constexpr int kTile = 128;  // rows and columns
  static constexpr int kDepth = 64 / sizeof(Key);
  static constexpr int kStages = 4;
  // 8 more than the tile: the 8 rows that ldmatrix reads 16 bytes of then lie in different banks
  // (272 = 16 mod 128), and so do the 4 rows that a float fragment reads 8 words of (136 = 8 mod
  // 32).
  static constexpr int kPitch = kTile + 8;
  static constexpr int kThreads = 256;             // 2 x 4 warps, of 64 x 32 elements each
  static constexpr int kChunk = 16 / sizeof(Key);  // keys of one copy
  static constexpr int kChunksPerRow = kTile / kChunk;
  static constexpr int kCopies = kDepth * kChunksPerRow / kThreads;  // of a thread, per operand
  // Rows after which the tensor cores' sum, which cuts off what does not fit, is added to one that
  // rounds to nearest: 8 steps of 16 rows; for float keys 4 of 8, of three products each. A sum of
  // squares then loses 7e-7 of itself at most. The 64 registers for that one leave room for one
  // block on a multiprocessor.
  static constexpr int kRowsPerPromotion = sizeof(Key) == 2 ? 128 : 32;
  static_assert(kCopies * kThreads == kDepth * kChunksPerRow, "copies fill a stage");
  static_assert(kRowsPerPromotion % kDepth == 0, "promotions fall between stages");
  static_assert(kRowsPerFlush % kRowsPerPromotion == 0, "flushes fall on promotions");
};

template <class Key>
struct MmaStage {
  using Slab = Key[MmaTraits<Key>::kDepth][MmaTraits<Key>::kPitch];
  alignas(16) Slab rows;
  alignas(16) Slab cols;
};

template <class Key>
struct MmaStorage {
  MmaStage<Key> stage[MmaTraits<Key>::kStages];
  Patch<8> patch[MmaTraits<Key>::kThreads / 32];
};
// 78 KiB, within the 100 KiB of sm_86 and sm_89.
static_assert(sizeof(MmaStorage<float>) == 79872 && sizeof(MmaStorage<Half>) == 79872);

// Fills stages in order of rows. Thread t copies chunks t, t + kThreads, ... of each operand.
template <class Key, class Sum>
class SlabLoader {
  using Traits = MmaTraits<Key>;
  using Slab = typename MmaStage<Key>::Slab;

 public:
  __device__ SlabLoader(const SecondMomentParams<Key, Sum>& p, TilePosition tile)
      : p_(p),
        tile_row_(static_cast<int64_t>(tile.row) * Traits::kTile),
        tile_col_(static_cast<int64_t>(tile.col) * Traits::kTile),
        aligned_(p.keys_col_stride == 1 && p.keys_row_stride * sizeof(Key) % 16 == 0 &&
                 reinterpret_cast<uintptr_t>(p.keys) % 16 == 0) {
    read_mask();
  }

  __device__ void fill(MmaStage<Key>& stage) {
#pragma unroll
    for (int i = 0; i < Traits::kCopies; ++i) {
      fill_chunk(stage.rows, tile_row_, i);
      fill_chunk(stage.cols, tile_col_, i);
    }
    first_ += Traits::kDepth;
    read_mask();
  }

 private:
  __device__ int chunk(int i) const { return threadIdx.x + i * Traits::kThreads; }

  // One fill ahead of its use: a copy must not wait for memory.
  __device__ void read_mask() {
#pragma unroll
    for (int i = 0; i < Traits::kCopies; ++i) {
      const int64_t row = first_ + chunk(i) / Traits::kChunksPerRow;
      keep_[i] = row < p_.n && (p_.mask == nullptr || p_.mask[row * p_.mask_stride]);
    }
  }

  __device__ void fill_chunk(Slab& slab, int64_t first_col, int i) const {
    const int slab_row = chunk(i) / Traits::kChunksPerRow;
    const int slab_col = chunk(i) % Traits::kChunksPerRow * Traits::kChunk;
    const int64_t row = first_ + slab_row;
    const int64_t col = first_col + slab_col;
    Key* to = &slab[slab_row][slab_col];
    const int64_t left = keep_[i] && col < p_.d ? p_.d - col : 0;
    const int count = left < Traits::kChunk ? static_cast<int>(left) : Traits::kChunk;
    const Key* from =
        count > 0 ? p_.keys + row * p_.keys_row_stride + col * p_.keys_col_stride : p_.keys;
    if (aligned_) {
      copy_async(to, from, count * static_cast<int>(sizeof(Key)));
    } else {
#pragma unroll 1
      for (int e = 0; e < Traits::kChunk; ++e) {
        to[e] = e < count ? from[e * p_.keys_col_stride] : narrow<Key>(0.0f);
      }
    }
  }

  const SecondMomentParams<Key, Sum>& p_;
  const int64_t tile_row_;
  const int64_t tile_col_;
  const bool aligned_;
  int64_t first_ = 0;
  bool keep_[Traits::kCopies];
};

}  // namespace rome_fast
