// From torch's stable tensors to what kernels take, and the checks that keep memory safe.
//
// Arguments are validated in Python (rome_fast/ops/_schema.py), with messages for users; the checks
// here only guard against calling torch.ops.rome_fast.* directly with sizes that do not fit.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <utility>

namespace rome_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A value that carries a type to a generic lambda.
template <class T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>) with the element type of the tensor; each device names half precision itself.
template <class BFloat16, class Half, class F>
auto dispatch_float_as(const Tensor& tensor, const char* name, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return f(TypeTag<double>{});
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::BFloat16:
      return f(TypeTag<BFloat16>{});
    case ScalarType::Half:
      return f(TypeTag<Half>{});
    default:
      STD_TORCH_CHECK(false, name, " must be float64, float32, bfloat16 or float16");
  }
}

inline void check_shape(const Tensor& tensor, const char* name, int64_t rows, int64_t cols) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == cols, name,
                  " must have shape [", rows, ", ", cols, "]");
}

inline void check_size(const Tensor& tensor, const char* name, int64_t size) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size, name, " must have shape [", size,
                  "]");
}

// A contiguous copy of a vector in the given type (the tensor itself where it already is one).
inline Tensor as_vector(const Tensor& tensor, ScalarType type) {
  return torch::stable::contiguous(torch::stable::to(tensor, type));
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

}  // namespace rome_fast
