#include "glue/ops_cpu.h"
#include "glue/tensors_cpu.h"
#include "kernels/cpu/cholesky_update.h"

namespace rome_fast {
namespace {

template <class T>
bool run(const Tensor& factor, const Tensor& x, bool downdate) {
  const CholeskyUpdateParams<T> params{data<T>(factor), factor.stride(0), factor.stride(1),
                                       factor.size(0),  data<double>(x),  downdate};
  return cholesky_update(params, torch_pool());
}

}  // namespace

Tensor cholesky_update_cpu(Tensor factor, const Tensor& vector, bool downdate) {
  STD_TORCH_CHECK(vector.dim() == 1, "vector must have 1 dimension");
  check_shape(factor, "factor", vector.size(0), vector.size(0));
  const Tensor x = torch::stable::clone(as_vector(vector, ScalarType::Double));
  bool applied;
  if (factor.scalar_type() == ScalarType::Double) {
    applied = run<double>(factor, x, downdate);
  } else {
    STD_TORCH_CHECK(factor.scalar_type() == ScalarType::Float, "factor must be float64 or float32");
    applied = run<float>(factor, x, downdate);
  }
  return new_scalar(factor, applied, ScalarType::Bool);
}

}  // namespace rome_fast
