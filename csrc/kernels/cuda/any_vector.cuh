// A vector of whatever float type and stride a caller has, read as double: no pass to convert it.
#pragma once

#include <cstdint>

#include "kernels/cuda/numeric.cuh"

namespace rome_fast {

enum class Element { kDouble, kFloat, kBFloat16, kHalf };

// The stride counts elements and may be negative.
struct AnyVector {
  const void* data;
  int64_t stride;
  Element element;

  // Element first + step * n for every n in [0, kCount), 0 from `end` on: kCount loads at once.
  template <int kCount>
  __device__ __forceinline__ void load(int64_t first, int64_t step, int64_t end,
                                       double (&out)[kCount]) const {
    switch (element) {
      case Element::kDouble:
        return load_as<double>(first, step, end, out);
      case Element::kFloat:
        return load_as<float>(first, step, end, out);
      case Element::kBFloat16:
        return load_as<BFloat16>(first, step, end, out);
      default:
        return load_as<Half>(first, step, end, out);
    }
  }

  __device__ __forceinline__ double at(int64_t i) const {
    double out[1];
    load(i, 1, i + 1, out);
    return out[0];
  }

 private:
  template <class T, int kCount>
  __device__ __forceinline__ void load_as(int64_t first, int64_t step, int64_t end,
                                          double (&out)[kCount]) const {
    const T* from = static_cast<const T*>(data);
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int64_t i = first + step * n;
      out[n] = i < end ? widen<double>(from[i * stride]) : 0.0;
    }
  }
};

}  // namespace rome_fast
