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
  static constexpr bool kIsHalf = sizeof(Key) == 2;
  static constexpr int kThreads = 256;  // 2 x 4 warps
  static constexpr int kTileRows = 128;
  // A warp's part is 64 x 64 for half keys: it reads 128 bytes of shared memory for a product of
  // 16 x 8 x 16, where 64 x 32 would read 192. For float keys, whose sums take twice the registers
  // and whose products twice the time for as many bytes, it is 64 x 32.
  static constexpr int kTileCols = kIsHalf ? 256 : 128;
  static constexpr int kWarpRows = kTileRows / 2;
  static constexpr int kWarpCols = kTileCols / 4;
  static constexpr int kDepth = 64 / sizeof(Key);
  static constexpr int kStep = kIsHalf ? 16 : 8;  // rows of keys that one product takes
  static constexpr int kStages = kIsHalf ? 3 : 4;
  // 8 more than the tile: the 8 rows that ldmatrix reads 16 bytes of then lie in different banks
  // (272 = 528 = 16 mod 128), and so do the 4 rows that a float fragment reads 8 words of (136 = 8
  // mod 32).
  static constexpr int kPadding = 8;
  // Rows after which the tensor cores' sum, which cuts off what does not fit, is added to one that
  // rounds to nearest. Of float keys 4 steps of 8 rows, of three products each: a sum of squares
  // then loses 7e-7 of itself at most. Half keys do without (see kRowsPerFlush).
  static constexpr bool kPromotes = !kIsHalf;
  static constexpr int kRowsPerPromotion = 32;
  static_assert(kDepth / kStep == 2, "a stage is two steps: one of the fragments' each");
  static_assert(kRowsPerPromotion % kDepth == 0, "promotions fall between stages");
  static_assert(kRowsPerFlush % kRowsPerPromotion == 0, "flushes fall on promotions");
};

template <class Key, int kWidth>
using Slab = Key[MmaTraits<Key>::kDepth][kWidth + MmaTraits<Key>::kPadding];

template <class Key>
struct MmaStage {
  alignas(16) Slab<Key, MmaTraits<Key>::kTileRows> rows;
  alignas(16) Slab<Key, MmaTraits<Key>::kTileCols> cols;
};

template <class Key>
struct MmaStorage {
  MmaStage<Key> stage[MmaTraits<Key>::kStages];
  Patch<16> patch[MmaTraits<Key>::kThreads / 32];
};
// 95 and 88 KiB, within the 99 KiB of a block of sm_86 and sm_89.
static_assert(sizeof(MmaStorage<Half>) == 97280 && sizeof(MmaStorage<float>) == 90112);

// Fills the slabs of one operand in order of rows. A thread always copies the same columns, of
// every kRowsApart-th row.
template <class Key, int kWidth>
class SlabLoader {
  using Traits = MmaTraits<Key>;
  static constexpr int kChunk = 16 / sizeof(Key);  // keys of one copy
  static constexpr int kChunksPerRow = kWidth / kChunk;
  static constexpr int kRowsApart = Traits::kThreads / kChunksPerRow;
  static constexpr int kCopies = Traits::kDepth / kRowsApart;  // of a thread
  static_assert(kRowsApart * kChunksPerRow == Traits::kThreads, "all threads copy");
  static_assert(kCopies * kRowsApart == Traits::kDepth, "copies fill a slab");

 public:
  template <class Sum>
  __device__ SlabLoader(const SecondMomentParams<Key, Sum>& p, int64_t first_col)
      : slab_row_(threadIdx.x / kChunksPerRow),
        slab_col_(threadIdx.x % kChunksPerRow * kChunk),
        row_stride_(p.keys_row_stride),
        col_stride_(p.keys_col_stride),
        n_(p.n),
        mask_(p.mask),
        mask_stride_(p.mask_stride) {
    const int64_t col = first_col + slab_col_;
    const int64_t left = col < p.d ? p.d - col : 0;
    count_ = left < kChunk ? static_cast<int>(left) : kChunk;
    from_ = p.keys + slab_row_ * row_stride_ + (count_ > 0 ? col : 0) * col_stride_;
    aligned_ = col_stride_ == 1 && row_stride_ * sizeof(Key) % 16 == 0 &&
               reinterpret_cast<uintptr_t>(p.keys) % 16 == 0;
    read_mask(0);
  }

  // `first` is the slab's first row of keys.
  __device__ __forceinline__ void fill(Slab<Key, kWidth>& slab, int64_t first) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      Key* to = &slab[slab_row_ + i * kRowsApart][slab_col_];
      copy(to, from_ + i * kRowsApart * row_stride_, keep_ >> i & 1 ? count_ : 0);
    }
    from_ += Traits::kDepth * row_stride_;
    read_mask(first + Traits::kDepth);
  }

 private:
  // One fill ahead of its use: a copy must not wait for memory.
  __device__ __forceinline__ void read_mask(int64_t first) {
    keep_ = 0;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int64_t row = first + slab_row_ + i * kRowsApart;
      const bool keep = row < n_ && (mask_ == nullptr || mask_[row * mask_stride_]);
      keep_ |= static_cast<unsigned>(keep) << i;
    }
  }

  // Of `from` nothing is read but its first `count` keys.
  __device__ __forceinline__ void copy(Key* to, const Key* from, int count) const {
    if (aligned_) {
      copy_async(to, from, count * static_cast<int>(sizeof(Key)));
    } else {
#pragma unroll 1
      for (int e = 0; e < kChunk; ++e) {
        to[e] = e < count ? from[e * col_stride_] : narrow<Key>(0.0f);
      }
    }
  }

  const int slab_row_;
  const int slab_col_;
  const Key* from_;  // of the slab that comes next, this thread's first row
  const int64_t row_stride_;
  const int64_t col_stride_;
  const int64_t n_;
  const bool* const mask_;
  const int64_t mask_stride_;
  int count_;
  bool aligned_;
  unsigned keep_;  // a bit for each copy of the slab that comes next
};

}  // namespace rome_fast
