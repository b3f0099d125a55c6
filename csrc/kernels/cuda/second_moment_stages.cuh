// The tiles and stages of second_moment_wgmma.cu, and their order: all warps of a block go through
// the same sequence.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/second_moment_tiles.cuh"

namespace rome_fast::warpgroups {

inline constexpr int kTileM = 128;
inline constexpr int kTileN = 256;
inline constexpr int kDepth = 64;  // rows of keys a stage
inline constexpr int kStages = 4;
using Order = TileOrder<kTileN / kTileM>;

// Waves on the 132 multiprocessors of an H100: d = 6400 has 650 tiles, 4.92 of 5 waves; 14336 has
// 3192, 24.2 of 25; 16384 has 4160, 31.5 of 32. The diagonal costs half a tile row more than the
// triangle, 4 % at d = 6400.

// Keys may come as a sum of planes, each far smaller than the one before: float ones do
// (second_moment_planes.cuh). Of two planes' products those are taken whose numbers, from 0 on, add
// up to less than kPlanes, the smallest first. The sum of a flush is then small, and the tensor
// cores cut off little of it, up to the product of plane 0 with itself.
template <int kPlanes>
inline constexpr int kProducts = kPlanes * (kPlanes + 1) / 2;

// So it is that product's rows that count. In 4096 of them an H200 lost 9.6e-6 of a sum of squares;
// the emulation loses 1.03e-5 there, 9.4e-7 with three planes and these flushes, and 8.0e-6 with
// two, of which 2.2e-6 are the product that they leave out. Estimated for an H200 and a float sum,
// d = 6400 and 16384 rows: one product and its 4 flushes take 1.1 ms (measured in bfloat16), and a
// flush, which reads and writes 82 MB, 0.04 of them at 4.3 TB/s. So three planes take 6 * 0.94 + 32
// * 0.04 = 6.9 ms, two 3 * 0.94 + 8 * 0.04 = 3.1. Sums that are double or compensated are twice as
// many bytes: 8.2 and 3.5 ms. Flushes every 256 rows would add another 1.3 or 2.6 ms to the three
// planes.
template <int kPlanes>
inline constexpr int kPlaneRowsPerFlush = kPlanes == 3 ? 512 : 2048;
template <>
inline constexpr int kPlaneRowsPerFlush<1> = kRowsPerFlush;

// Where a warp is in that sequence.
struct Position {
  uint32_t step = 0;

  __device__ int slot() const { return step % kStages; }
  __device__ uint32_t parity() const { return step / kStages & 1; }
};

// Calls f(tile) for every tile of this block.
template <class F>
__device__ __forceinline__ void for_each_tile(int64_t d, const F& f) {
  const Order order(d, kTileM);
  const int tiles = order.size();
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) f(order.at(tile));
}

__host__ __device__ __forceinline__ int count_slabs(int64_t n) {
  return static_cast<int>((n + kDepth - 1) / kDepth);
}

// Calls f(begin, end) for the slabs of every flush.
template <int kPlanes, class F>
__device__ __forceinline__ void for_each_flush(int slabs, const F& f) {
  constexpr int kSlabs = kPlaneRowsPerFlush<kPlanes> / kDepth;
  for (int begin = 0; begin < slabs; begin += kSlabs) {
    f(begin, slabs - begin < kSlabs ? slabs : begin + kSlabs);
  }
}

// Calls f(plane of the tile's rows, plane of its columns, slab) for the stages of a flush.
template <int kPlanes, class F>
__device__ __forceinline__ void for_each_stage(int begin, int end, const F& f) {
  for (int both = kPlanes - 1; both >= 0; --both) {
    for (int plane = 0; plane <= both; ++plane) {
      for (int slab = begin; slab < end; ++slab) f(plane, both - plane, slab);
    }
  }
}

}  // namespace rome_fast::warpgroups
