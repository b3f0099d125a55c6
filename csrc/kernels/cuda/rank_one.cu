// A thread has neighbouring elements of some lines, 16 bytes of each where they can be read at
// once, and keeps what it needs of the vector along the lines.
#include <cstdlib>
#include <type_traits>

#include "kernels/cuda/chosen.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/rank_one.h"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

constexpr int kThreads = 256;
constexpr int kLines = 16;  // of a block
// Lines at once: 64 bytes of a thread on their way, 128 KB of the 2048 threads of a multiprocessor;
// 18 KB are on their way at 3 TB/s and 0.8 us.
constexpr int kBatch = 4;
constexpr int kVectorBytes = 16;
constexpr int64_t kMaxGridY = 65535;

// Not rounded to anything besides.
struct Nothing {};

// Lines run along the unit stride where there is one; v_i * u_j has the same bits either way.
template <class Weight, class Rounded>
struct Lines {
  Weight* weight;
  int64_t line_stride;
  int64_t stride;
  int64_t lines;
  int64_t size;                   // of a line
  const Compute<Weight>* scales;  // [lines]
  const Compute<Weight>* x;       // [size]
  const bool* applied;
  Rounded* rounded;
  int64_t rounded_line_stride;
  int64_t rounded_stride;
};

template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};

__device__ __forceinline__ float multiply_add(float scale, float x, float sum) {
  return __fadd_rn(sum, __fmul_rn(scale, x));
}

__device__ __forceinline__ double multiply_add(double scale, double x, double sum) {
  return __dadd_rn(sum, __dmul_rn(scale, x));
}

template <class Weight, class Rounded, int kCount>
__device__ __forceinline__ void add_to(const Lines<Weight, Rounded>& p, int64_t line,
                                       int64_t position, const Compute<Weight> (&x)[kCount],
                                       const Vector<Weight, kCount>& old) {
  const Compute<Weight> scale = p.scales[line];
  Vector<Weight, kCount> sums;
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    sums.values[n] = narrow<Weight>(multiply_add(scale, x[n], widen(old.values[n])));
  }
  Weight* at = p.weight + line * p.line_stride + position * p.stride;
  *reinterpret_cast<Vector<Weight, kCount>*>(at) = sums;
  if constexpr (!std::is_same_v<Rounded, Nothing>) {
    Vector<Rounded, kCount> rounded;
#pragma unroll
    for (int n = 0; n < kCount; ++n) rounded.values[n] = narrow<Rounded>(sums.values[n]);
    Rounded* to = p.rounded + line * p.rounded_line_stride + position * p.rounded_stride;
    *reinterpret_cast<Vector<Rounded, kCount>*>(to) = rounded;
  }
}

// kCount elements at `position` of lines [begin, end).
template <int kCount, class Weight, class Rounded>
__device__ __forceinline__ void add_to_lines(const Lines<Weight, Rounded>& p, int64_t position,
                                             int64_t begin, int64_t end) {
  Compute<Weight> x[kCount];
#pragma unroll
  for (int n = 0; n < kCount; ++n) x[n] = p.x[position + n];
  for (int64_t line = begin; line < end; line += kBatch) {
    Vector<Weight, kCount> old[kBatch];
#pragma unroll
    for (int l = 0; l < kBatch; ++l) {
      if (line + l >= end) break;
      const Weight* at = p.weight + (line + l) * p.line_stride + position * p.stride;
      old[l] = *reinterpret_cast<const Vector<Weight, kCount>*>(at);
    }
#pragma unroll
    for (int l = 0; l < kBatch; ++l) {
      if (line + l < end) add_to<Weight, Rounded, kCount>(p, line + l, position, x, old[l]);
    }
  }
}

template <class Weight, class Rounded, int kCount>
__global__ void __launch_bounds__(kThreads) add_outer_kernel(Lines<Weight, Rounded> p) {
  if (p.applied != nullptr && !*p.applied) return;
  const int64_t position = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kCount;
  if (position >= p.size) return;
  for (int64_t begin = int64_t(blockIdx.y) * kLines; begin < p.lines;
       begin += int64_t(gridDim.y) * kLines) {
    const int64_t end = min(begin + kLines, p.lines);
    if (position + kCount <= p.size) {
      add_to_lines<kCount>(p, position, begin, end);
    } else {
      for (int64_t i = position; i < p.size; ++i) add_to_lines<1>(p, i, begin, end);
    }
  }
}

// The definition, a thread an element.
template <class Weight, class Rounded>
__global__ void __launch_bounds__(kThreads) add_outer_naive_kernel(Lines<Weight, Rounded> p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t line = blockIdx.y;
  if (i >= p.size || (p.applied != nullptr && !*p.applied)) return;
  Weight& element = p.weight[line * p.line_stride + i * p.stride];
  element = narrow<Weight>(multiply_add(p.scales[line], p.x[i], widen(element)));
  if constexpr (!std::is_same_v<Rounded, Nothing>) {
    p.rounded[line * p.rounded_line_stride + i * p.rounded_stride] = narrow<Rounded>(element);
  }
}

template <class T>
bool are_vectors(const T* at, int64_t line_stride, int64_t stride, int64_t lines, int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(at);
  const bool lines_are = lines <= 1 || line_stride * int64_t(sizeof(T)) % bytes == 0;
  return stride == 1 && address % bytes == 0 && lines_are;
}

template <class Weight, class Rounded>
void add_outer(const Lines<Weight, Rounded>& p, cudaStream_t stream) {
  constexpr int kCount = kVectorBytes / sizeof(Weight);
  bool vectors = are_vectors(p.weight, p.line_stride, p.stride, p.lines, kVectorBytes);
  if constexpr (!std::is_same_v<Rounded, Nothing>) {
    vectors = vectors && are_vectors(p.rounded, p.rounded_line_stride, p.rounded_stride, p.lines,
                                     kCount * sizeof(Rounded));
  }
  const auto blocks = [&](int64_t elements) {
    return static_cast<unsigned>((p.size + elements - 1) / elements);
  };
  const int64_t rows = (p.lines + kLines - 1) / kLines;
  const unsigned y = static_cast<unsigned>(rows < kMaxGridY ? rows : kMaxGridY);
  if (naive_is_chosen() && p.lines <= kMaxGridY) {
    launch(add_outer_naive_kernel<Weight, Rounded>,
           dim3(blocks(kThreads), static_cast<unsigned>(p.lines)), dim3(kThreads), 0, stream, p);
  } else if (vectors) {
    launch(add_outer_kernel<Weight, Rounded, kCount>, dim3(blocks(kThreads * kCount), y),
           dim3(kThreads), 0, stream, p);
  } else {
    launch(add_outer_kernel<Weight, Rounded, 1>, dim3(blocks(kThreads), y), dim3(kThreads), 0,
           stream, p);
  }
}

template <class Weight, class Rounded>
Lines<Weight, Rounded> lines_of(const RankOneUpdateParams<Weight>& p,
                                const RoundedWeight<Rounded>& rounded) {
  const bool by_rows = std::abs(p.col_stride) <= std::abs(p.row_stride);
  if (by_rows) {
    return {p.weight, p.row_stride, p.col_stride, p.d_value,          p.d_key,           p.v,
            p.u,      p.applied,    rounded.at,   rounded.row_stride, rounded.col_stride};
  }
  return {p.weight,  p.col_stride, p.row_stride,       p.d_key,           p.d_value, p.u, p.v,
          p.applied, rounded.at,   rounded.col_stride, rounded.row_stride};
}

}  // namespace

template <class Weight>
void rank_one_update(const RankOneUpdateParams<Weight>& params, cudaStream_t stream) {
  add_outer(lines_of(params, RoundedWeight<Nothing>{}), stream);
}

template <class Half16>
void rank_one_update(const RankOneUpdateParams<float>& params, const RoundedWeight<Half16>& rounded,
                     cudaStream_t stream) {
  add_outer(lines_of(params, rounded), stream);
}

template void rank_one_update(const RankOneUpdateParams<double>&, cudaStream_t);
template void rank_one_update(const RankOneUpdateParams<float>&, cudaStream_t);
template void rank_one_update(const RankOneUpdateParams<BFloat16>&, cudaStream_t);
template void rank_one_update(const RankOneUpdateParams<Half>&, cudaStream_t);
template void rank_one_update(const RankOneUpdateParams<float>&, const RoundedWeight<BFloat16>&,
                              cudaStream_t);
template void rank_one_update(const RankOneUpdateParams<float>&, const RoundedWeight<Half>&,
                              cudaStream_t);

}  // namespace rome_fast
