// What the glue of the CPU kernels needs beside tensors.h.
#pragma once

#include "glue/tensors.h"
#include "kernels/cpu/half.h"
#include "kernels/cpu/parallel.h"

namespace rome_fast {

// Calls f(TypeTag<T>) with the element type of the tensor.
template <class F>
auto dispatch_float(const Tensor& tensor, const char* name, const F& f) {
  return dispatch_float_as<BFloat16, Half>(tensor, name, f);
}

// A tensor of no dimensions; `type` is the one of T.
template <class T>
Tensor new_scalar(const Tensor& like, T value, ScalarType type) {
  Tensor scalar = torch::stable::new_empty(like, {}, type);
  *data<T>(scalar) = value;
  return scalar;
}

inline Pool torch_pool() {
  return {[](int64_t begin, int64_t end, int64_t grain, Pool::Body body, void* context) {
    torch::stable::parallel_for(begin, end, grain,
                                [=](int64_t first, int64_t last) { body(first, last, context); });
  }};
}

}  // namespace rome_fast
