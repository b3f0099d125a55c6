// What the second-moment kernels share: the order of the tiles, and adding a tile to the sum.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"

namespace rome_fast {

struct TilePosition {
  int row;  // counted in tiles
  int col;
};

// The tiles that hold a part of the lower triangle, each kHeights times as wide as high, by number.
// A group of kGroup columns of tiles is gone down row by row before the next group begins. Tiles
// that run at the same time then form a near square, and read the fewest different columns of keys:
// 132 tiles of 128 x 256 are about 16 x 8 of them, 2048 + 2048 columns, where going down one column
// of tiles at a time would take all d. The rest of what they read is found in L2.
template <int kHeights>
struct TileOrder {
  static constexpr int kGroup = 8;
  int rows;
  int cols;

  __host__ __device__ TileOrder(int64_t d, int tile_rows)
      : rows(static_cast<int>((d + tile_rows - 1) / tile_rows)),
        cols((rows + kHeights - 1) / kHeights) {}

  __host__ __device__ int width(int first_col) const {
    return cols - first_col < kGroup ? cols - first_col : kGroup;
  }

  // Beside the diagonal, kHeights rows of a group have one tile, the next ones two, and so on up to
  // its width; all rows below them are full. Where the last tile row is cut off by the end of the
  // matrix the second term is negative.
  __host__ __device__ int group_size(int first_col) const {
    const int w = width(first_col);
    return kHeights * w * (w + 1) / 2 + (rows - kHeights * (first_col + w)) * w;
  }

  __host__ __device__ int size() const {
    int tiles = 0;
    for (int col = 0; col < cols; col += kGroup) tiles += group_size(col);
    return tiles;
  }

  __host__ __device__ TilePosition at(int index) const {
    int col = 0;
    for (; index >= group_size(col); col += kGroup) index -= group_size(col);
    const int w = width(col);
    int row = 0;  // below the group's first one
    for (; row < kHeights * w && index > row / kHeights; ++row) index -= row / kHeights + 1;
    if (row < kHeights * w) return {kHeights * col + row, col + index};
    return {kHeights * (col + w) + index / w, col + index % w};
  }
};

// sum + lost += addend; lost becomes what rounds off sum (two-sum, Knuth 1969). The intrinsics keep
// the compiler from contracting or reordering.
__device__ __forceinline__ void add_compensated(float addend, float& sum, float& lost) {
  const float increment = __fadd_rn(addend, lost);
  const float total = __fadd_rn(sum, increment);
  const float rounded = __fadd_rn(total, -sum);
  const float sum_error = __fadd_rn(sum, -__fadd_rn(total, -rounded));
  lost = __fadd_rn(sum_error, __fadd_rn(increment, -rounded));
  sum = total;
}

// What is lost of a float sum is always worked out: it is less work than a branch.
template <class Sum, class Value>
__device__ __forceinline__ void add_value(Value value, Sum& sum, Sum& lost) {
  if constexpr (std::is_same_v<Sum, float>) {
    add_compensated(value, sum, lost);
  } else {
    sum += value;
  }
}

// One element of the sum, unless it is above the diagonal or outside.
template <class Key, class Sum>
__device__ __forceinline__ void add_element(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                            int64_t col, Sum value) {
  if (row >= p.d || col > row) return;
  Sum none = 0;
  const bool compensated = p.compensation != nullptr;
  const int64_t at = row * p.compensation_row_stride + col * p.compensation_col_stride;
  Sum& lost = compensated ? p.compensation[at] : none;
  add_value(value, p.moment_sum[row * p.moment_row_stride + col * p.moment_col_stride], lost);
}

// The way of a warp from the registers of the tensor cores to whole rows of the sum. 40 floats a
// row: the 4 rows that half a warp writes 8 pairs of then lie in different banks.
template <int kRows>
struct Patch {
  alignas(8) float value[kRows][40];  // 32 columns are used
};

// A matrix of which a lane goes through one column of a patch, or part of a row.
template <class T>
struct Walk {
  T* at;
  int64_t step;

  __device__ __forceinline__ Walk(T* data, int64_t row_stride, int64_t col_stride, int64_t row,
                                  int64_t col, int row_step, int col_step)
      : at(data + row * row_stride + col * col_stride),
        step(computed_here(row_step * row_stride + col_step * col_stride)) {}
};

// Adds a patch, whose first element is (row, col), to the sum. The lanes of a warp lie along the
// smaller stride of the sum. A lane's loads come before its stores, kBatch at a time: they overlap.
template <int kBatch, int kRows, class Key, class Sum>
__device__ __forceinline__ void add_patch(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                          int64_t col, const Patch<kRows>& patch) {
  const int lane = threadIdx.x % 32;
  // Without branches on which it is: code for both ways would be twice as long.
  const int row_step = static_cast<int>(computed_here(p.moment_col_stride <= p.moment_row_stride));
  const int col_step = (1 - row_step) * (32 / kRows);
  const int r = (1 - row_step) * (lane % kRows);
  const int c = row_step != 0 ? lane : lane / kRows;
  const Walk<Sum> sums(p.moment_sum, p.moment_row_stride, p.moment_col_stride, row + r, col + c,
                       row_step, col_step);
  const Walk<Sum> losts(p.compensation, p.compensation_row_stride, p.compensation_col_stride,
                        row + r, col + c, row_step, col_step);
  const bool compensated = std::is_same_v<Sum, float> && p.compensation != nullptr;
  const int rows_left = p.d - row < kRows ? static_cast<int>(p.d - row) : kRows;
  const int diagonal = row - col < 32 ? static_cast<int>(row - col) : 32;  // more is no limit
  const auto inside = [&](int i) {
    return r + i * row_step < rows_left && c + i * col_step <= r + i * row_step + diagonal;
  };
#pragma unroll
  for (int first = 0; first < kRows; first += kBatch) {
    Sum sum[kBatch], lost[kBatch];
#pragma unroll
    for (int i = first; i < first + kBatch; ++i) {
      sum[i - first] = inside(i) ? sums.at[i * sums.step] : Sum(0);
      lost[i - first] = compensated && inside(i) ? losts.at[i * losts.step] : Sum(0);
    }
#pragma unroll
    for (int i = first; i < first + kBatch; ++i) {
      const float value = patch.value[r + i * row_step][c + i * col_step];
      add_value(value, sum[i - first], lost[i - first]);
      if (inside(i)) sums.at[i * sums.step] = sum[i - first];
      if (compensated && inside(i)) losts.at[i * losts.step] = lost[i - first];
    }
  }
}

// Adds kRows x 32 sums that a warp holds as the tensor cores leave them: of row lane / 4 (and 8
// below it, if there are 16) columns 8 j + 2 (lane % 4) and the next, j = 0..3, in value(j, 0) and
// value(j, 1) (and the next two). `row` and `col` are those of the first element.
template <int kBatch, int kRows, class Key, class Sum, class F>
__device__ __forceinline__ void add_fragment(const SecondMomentParams<Key, Sum>& p, int64_t row,
                                             int64_t col, Patch<kRows>& patch, const F& value) {
  row = computed_here(row);
  col = computed_here(col);
  if (row >= p.d || col > row + kRows - 1) return;  // the same for the whole warp
  const int lane = threadIdx.x % 32;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kRows / 2; ++i) {
    const int j = i % 4, half = i / 4;
    float2 pair = make_float2(value(j, 2 * half), value(j, 2 * half + 1));
    *reinterpret_cast<float2*>(&patch.value[lane / 4 + 8 * half][8 * j + lane % 4 * 2]) = pair;
  }
  __syncwarp();
  add_patch<kBatch>(p, row, col, patch);
}

// Rows of keys that go into one float accumulator before it is added to the sum. The tensor cores
// cut off what does not fit, 16 rows at a time: of a sum of squares an H200 lost 9.6e-6 (bfloat16)
// and 1.9e-5 (float16) in 4096 rows. These are 54 us of products for a 128 x 256 tile (5 TFLOP/s on
// a multiprocessor of an H100), and its float64 sums are 512 KiB to and from memory: at 1/132 of 3
// TB/s 23 us if all wait for it at once, about half if they do not.
inline constexpr int kRowsPerFlush = 4096;

}  // namespace rome_fast
