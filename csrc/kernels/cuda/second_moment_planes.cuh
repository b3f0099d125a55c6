// float keys as sums of planes of bfloat16: wgmma takes columns of keys from rows in memory for
// types of 16 bits alone.
//
// A plane holds what the ones before it leave of each key, rounded: the first one is off by 2^-8 of
// the key at most, two together by 2^-16, and three are the key itself (but for what is below
// 2^-133). A key that is not finite makes NaN of its row and column of the sum, and so does one
// beyond 3.39e38, which no bfloat16 is near.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_stages.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast::planes {

inline constexpr int kPiece = 8;  // keys of a thread: 16 bytes of each plane
inline constexpr int kBlockRows =
    8;  // a warp each: keys stored by columns are read from one sector
inline constexpr int kThreads = 32 * kBlockRows;
static_assert(warpgroups::kDepth % kBlockRows == 0, "blocks end where planes do");

// Planes lie one below the other.
struct PlaneShape {
  int64_t rows;   // whole slabs
  int64_t pitch;  // columns in memory, a multiple of 16 bytes
};

// Of as many of the keys as are split at a time: all, or some flushes in kMaxWorkspace.
template <int kPlanes>
PlaneShape plane_shape(int64_t n, int64_t d) {
  constexpr int64_t kFlush = warpgroups::kPlaneRowsPerFlush<kPlanes>;
  const int64_t pitch = (d + kPiece - 1) / kPiece * kPiece;
  const int64_t row_bytes = kPlanes * pitch * static_cast<int64_t>(sizeof(BFloat16));
  const int64_t most = std::max<int64_t>(kMaxWorkspace / row_bytes / kFlush, 1) * kFlush;
  const int64_t all = static_cast<int64_t>(warpgroups::count_slabs(n)) * warpgroups::kDepth;
  return {std::min(most, all), pitch};
}

template <int kPlanes>
size_t plane_bytes(int64_t n, int64_t d) {
  const PlaneShape shape = plane_shape<kPlanes>(n, d);
  return sizeof(BFloat16) * kPlanes * shape.rows * shape.pitch;
}

// Splits p.n rows of keys into p.memory. Rows that the mask drops, and those up to shape.rows,
// become zeros.
template <int kPlanes, class Sum>
__global__ void __launch_bounds__(kThreads)
    split_keys_kernel(const SecondMomentParams<float, Sum> p, PlaneShape shape) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kBlockRows + threadIdx.x / 32;
  const int64_t col = (static_cast<int64_t>(blockIdx.y) * 32 + threadIdx.x % 32) * kPiece;
  if (col >= shape.pitch) return;
  const bool keep = row < p.n && (p.mask == nullptr || p.mask[row * p.mask_stride]);
  const float* key = p.keys + row * p.keys_row_stride + col * p.keys_col_stride;
  float left[kPiece];
#pragma unroll
  for (int i = 0; i < kPiece; ++i) {
    left[i] = keep && col + i < p.d ? key[i * p.keys_col_stride] : 0.0f;
  }
  BFloat16* to = static_cast<BFloat16*>(p.memory) + row * shape.pitch + col;
#pragma unroll
  for (int plane = 0; plane < kPlanes; ++plane, to += shape.rows * shape.pitch) {
    alignas(16) BFloat16 part[kPiece];
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      part[i] = narrow<BFloat16>(left[i]);
      left[i] -= widen(part[i]);
    }
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(part);
  }
}

// Calls f(planes) for as many of the keys as go at a time, until all are done.
template <int kPlanes, class Sum, class F>
void for_each_part(SecondMomentParams<float, Sum> p, cudaStream_t stream, const F& f) {
  for (int64_t left = p.n; left > 0; left -= p.n) {
    const PlaneShape shape = plane_shape<kPlanes>(left, p.d);
    p.n = std::min(shape.rows, left);
    const dim3 grid(static_cast<unsigned>(shape.rows / kBlockRows),
                    static_cast<unsigned>((shape.pitch + 32 * kPiece - 1) / (32 * kPiece)));
    launch(split_keys_kernel<kPlanes, Sum>, grid, dim3(kThreads), 0, stream, p, shape);
    f(SecondMomentParams<BFloat16, Sum>{
        p.moment_sum, p.moment_row_stride, p.moment_col_stride, p.compensation,
        p.compensation_row_stride, p.compensation_col_stride,
        static_cast<const BFloat16*>(p.memory), shape.pitch, 1, nullptr, 0, shape.rows, p.d});
    p.keys += p.n * p.keys_row_stride;
    if (p.mask != nullptr) p.mask += p.n * p.mask_stride;
  }
}

}  // namespace rome_fast::planes
