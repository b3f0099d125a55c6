// What the three warpgroups of a block of second_moment_wgmma.cu do.
//
// The first one feeds a ring of stages: one thread asks for the copies, and, if there is a mask, a
// warp writes zeros over the rows that it drops. The other two multiply, 64 rows of the tile each.
// Blocks are persistent: the copies of the next tile run while the last one is added to the sum.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_stages.cuh"
#include "kernels/cuda/second_moment_tiles.cuh"

namespace rome_fast::warpgroups {

inline constexpr int kBox = 64;  // columns of keys a copy: 128 bytes, the widest that swizzle takes
inline constexpr int kRowBoxes = kTileM / kBox;
inline constexpr int kBoxes = (kTileM + kTileN) / kBox;
inline constexpr int kWarpgroup = 128;
inline constexpr int kConsumers = kTileM / 64;  // warpgroups
inline constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
inline constexpr int kStep = 16;  // rows of keys that one wgmma takes
inline constexpr int kStagesAhead =
    8;  // 8192 cycles of products, several times what memory takes to answer

// Of each thread 128 sums, and of a consumer what else it needs. setmaxnreg moves registers from
// the producer's warpgroup to the consumers', starting from what the kernel is compiled with.
inline constexpr int kProducerRegisters = 40;
inline constexpr int kConsumerRegisters = 232;
static_assert(kProducerRegisters + kConsumers * kConsumerRegisters <= (1 + kConsumers) * 168 &&
                  kThreads * 168 <= 65536,
              "registers of a multiprocessor");

// 48 KiB for 2 * 128 * 256 * 64 operations, 1024 cycles of the tensor cores: 48 bytes a cycle from
// L2, in all tiles of a wave. 128 x 128 tiles would need 64.
struct Stage {
  alignas(1024) uint16_t box[kBoxes][kDepth][kBox];  // first the tile's rows, then its columns
};
inline constexpr uint32_t kStageBytes = sizeof(Stage);

struct WgmmaStorage {
  Stage stage[kStages];
  Patch<16> patch[kConsumers * kWarpgroup / 32];
  Barrier full[kStages];   // the copies have landed
  Barrier clean[kStages];  // and masked rows are zeros
  Barrier empty[kStages];  // the products that read the stage are done
};
static_assert(kStageBytes == 49152 && sizeof(WgmmaStorage) <= 227 * 1024, "shared memory");

// One thread: copies every stage of every tile, as they become empty. A plane is n rows, filled up
// to whole slabs.
template <int kPlanes>
__device__ __forceinline__ void produce(WgmmaStorage& s, const CUtensorMap& map, int64_t n,
                                        int64_t d) {
  const int slabs = count_slabs(n);
  Position at;
  const auto copy = [&](TilePosition tile, int row_plane, int col_plane, int slab) {
    const int slot = at.slot();
    wait_for_phase(&s.empty[slot], at.parity() ^ 1);
    arrive_expecting(&s.full[slot], kStageBytes);
    for (int box = 0; box < kBoxes; ++box) {
      const bool of_rows = box < kRowBoxes;
      const int col =
          of_rows ? tile.row * kTileM + box * kBox : tile.col * kTileN + (box - kRowBoxes) * kBox;
      const int row = ((of_rows ? row_plane : col_plane) * slabs + slab) * kDepth;
      copy_box(s.stage[slot].box[box], &map, col, row, &s.full[slot]);
    }
    ++at.step;
  };
  for_each_tile(d, [&](TilePosition tile) {
    for_each_flush<kPlanes>(slabs, [&](int begin, int end) {
      for_each_stage<kPlanes>(begin, end, [&](int row_plane, int col_plane, int slab) {
        copy(tile, row_plane, col_plane, slab);
      });
    });
  });
}

// Which of the 64 rows of a slab the mask drops, as bits; the same in all lanes.
__device__ __forceinline__ uint64_t dropped_rows(const bool* mask, int64_t stride, int64_t n,
                                                 int slab) {
  const int64_t row = static_cast<int64_t>(slab) * kDepth + threadIdx.x % 32;
  const uint32_t low = __ballot_sync(~0u, row < n && !mask[row * stride]);
  const uint32_t high = __ballot_sync(~0u, row + 32 < n && !mask[(row + 32) * stride]);
  return static_cast<uint64_t>(high) << 32 | low;
}

// One warp: zeros the dropped rows of every stage. A row of a box is 128 bytes in one piece:
// swizzle only permutes what is in it.
__device__ __forceinline__ void clean(WgmmaStorage& s, const bool* mask, int64_t stride, int64_t n,
                                      int64_t d) {
  constexpr int kPieces = kBoxes * 8;  // of 16 bytes
  const int lane = threadIdx.x % 32;
  const int slabs = count_slabs(n);
  Position at;
  for_each_tile(d, [&](TilePosition) {
    uint64_t next = dropped_rows(mask, stride, n, 0);
    for (int slab = 0; slab < slabs; ++slab, ++at.step) {
      uint64_t dropped = next;
      if (slab + 1 < slabs) next = dropped_rows(mask, stride, n, slab + 1);
      const int slot = at.slot();
      wait_for_phase(&s.full[slot], at.parity());
      for (; dropped != 0; dropped &= dropped - 1) {
        const int row = __ffsll(static_cast<long long>(dropped)) - 1;
        for (int piece = lane; piece < kPieces; piece += 32) {
          zero_16_bytes(&s.stage[slot].box[piece / 8][row][piece % 8 * 8]);
        }
      }
      fence_async_proxy();
      arrive(&s.clean[slot]);
    }
  });
}

#if defined(ROME_FAST_HAS_WGMMA)
// The descriptor of an operand whose rows of keys are 128 bytes apart in boxes, swizzled by 128
// bytes, columns of keys in consecutive addresses. Fields count 16 bytes: bits 0-13 the address,
// 16-29 from one box to the next, 32-45 from 8 rows of keys to the next 8, 62-63 the swizzle (1).
__device__ __forceinline__ uint64_t describe(const void* operand) {
  constexpr uint64_t kFromBoxToBox = sizeof(Stage::box[0]) / 16;
  constexpr uint64_t kFrom8To8Rows = 8 * sizeof(Stage::box[0][0]) / 16;
  return (shared_address(operand) & 0x3FFFF) >> 4 | kFromBoxToBox << 16 | kFrom8To8Rows << 32 |
         uint64_t{1} << 62;
}

// The products of one stage with the 64 rows of the tile that are this warpgroup's.
template <class Key>
__device__ __forceinline__ void multiply_stage(const Stage& stage, int consumer, bool accumulate,
                                               float (&sum)[128]) {
  fence_products();
#pragma unroll
  for (int k = 0; k < kDepth; k += kStep) {
    const uint64_t a = describe(stage.box[consumer][k]);
    const uint64_t b = describe(stage.box[kRowBoxes][k]);
    multiply_m64n256k16<Key>(sum, a, b, accumulate || k > 0);
  }
  commit_products();
}

// Adds a warp's sums, of 16 rows from `row` on and the columns from `col` on.
template <class Key, class Sum>
__device__ __forceinline__ void add_sums(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                         int64_t col, const float (&sum)[128], Patch<16>& patch) {
#pragma unroll
  for (int i = 0; i < kTileN / 32; ++i) {
    add_fragment<8>(p, row, col + 32 * i, patch,
                    [&](int j, int e) { return sum[16 * i + 4 * j + e]; });
  }
}

// Brings to L2 what add_sums is going to read, if rows of it lie in one piece.
template <class Key, class Sum>
__device__ __forceinline__ void prefetch_sums(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                              int64_t col) {
  constexpr int kLine = 128 / sizeof(Sum);
  constexpr int kLinesPerRow = kTileN / kLine;
  if (p.moment_col_stride != 1) return;
  for (int i = threadIdx.x % 32; i < 16 * kLinesPerRow; i += 32) {
    const int64_t r = row + i / kLinesPerRow;
    const int64_t c = col + i % kLinesPerRow * kLine;
    if (r < p.d && c <= r) prefetch_to_l2(p.moment_sum + r * p.moment_row_stride + c);
  }
}

// A warpgroup: multiplies every stage, and gives it back once the products have read it.
template <int kPlanes, class Key, class Sum>
__device__ __forceinline__ void consume(WgmmaStorage& s, const SecondMomentParams<Key, Sum>& p,
                                        int consumer) {
  const int warp = threadIdx.x / 32 - kWarpgroup / 32;  // of the consumers
  const bool speaks = threadIdx.x % 32 == 0;            // for its warp
  Position at;
  float sum[128];
  for_each_tile(p.d, [&](TilePosition tile) {
    const int64_t row = static_cast<int64_t>(tile.row) * kTileM + 16 * warp;
    const int64_t col = static_cast<int64_t>(tile.col) * kTileN;
    for_each_flush<kPlanes>(count_slabs(p.n), [&](int begin, int end) {
      const int stages = kProducts<kPlanes> * (end - begin);
      const int ask = stages < kStagesAhead ? 0 : stages - kStagesAhead;
      for (int stage = 0; stage < stages; ++stage, ++at.step) {
        wait_for_phase(&s.full[at.slot()], at.parity());
        if (p.mask != nullptr) wait_for_phase(&s.clean[at.slot()], at.parity());
        multiply_stage<Key>(s.stage[at.slot()], consumer, stage > 0, sum);
        if (stage == ask) prefetch_sums(p, computed_here(row), computed_here(col));
        wait_for_products<1>(sum);  // those of the stage before
        if (stage > 0 && speaks) arrive(&s.empty[(at.step - 1) % kStages]);
      }
      wait_for_products<0>(sum);
      if (speaks) arrive(&s.empty[(at.step - 1) % kStages]);
      add_sums(p, row, col, sum, s.patch[warp]);
    });
  });
}
#endif

}  // namespace rome_fast::warpgroups
