// What the glue of the CUDA kernels needs beside tensors.h.
#pragma once

#include "glue/device.h"
#include "glue/tensors.h"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {

// Calls f(TypeTag<T>) with the element type of the tensor.
template <class F>
auto dispatch_float(const Tensor& tensor, const char* name, const F& f) {
  return dispatch_float_as<BFloat16, Half>(tensor, name, f);
}

// A new contiguous tensor on the device of `like`; nothing is written into it.
inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}

// Memory for a kernel to work in, from torch's allocator: kept until all work that was put on the
// current stream so far is done.
inline Tensor workspace(const Tensor& like, size_t bytes) {
  return new_tensor(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

}  // namespace rome_fast
