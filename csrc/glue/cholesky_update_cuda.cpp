#include "glue/ops_cuda.h"
#include "glue/tensors_cuda.h"
#include "kernels/cuda/cholesky_solve.h"
#include "kernels/cuda/cholesky_update.h"
#include "kernels/cuda/chosen.h"

namespace rome_fast {
namespace {

template <class T>
void run(const Tensor& factor, const Tensor& vector, bool downdate, const Tensor& applied,
         cudaStream_t stream) {
  const int64_t d = vector.size(0);
  const Tensor a = new_tensor(factor, {d}, ScalarType::Double);
  const Tensor steps = workspace(factor, d * sizeof(ColumnStep));
  const Tensor solve_memory = workspace(factor, cholesky_solve_bytes(d));
  const CholeskySolveParams<T> solve{data<T>(factor),
                                     factor.stride(0),
                                     factor.stride(1),
                                     d,
                                     {data<double>(vector), 1, Element::kDouble},
                                     data<double>(a),
                                     data<void>(solve_memory)};
  forward_solve(solve, stream);
  const CholeskyUpdateParams<T> update{
      data<T>(factor), factor.stride(0),        factor.stride(1), d,
      data<double>(a), data<ColumnStep>(steps), downdate,         data<bool>(applied)};
  (naive_is_chosen() ? cholesky_update_naive<T> : cholesky_update<T>)(update, stream);
}

}  // namespace

Tensor cholesky_update_cuda(Tensor factor, const Tensor& vector, bool downdate) {
  STD_TORCH_CHECK(vector.dim() == 1, "vector must have 1 dimension");
  check_shape(factor, "factor", vector.size(0), vector.size(0));
  const OnDeviceOf on(factor);
  const Tensor x = as_vector(vector, ScalarType::Double);
  const Tensor applied = new_tensor(factor, {}, ScalarType::Bool);
  if (factor.scalar_type() == ScalarType::Double) {
    run<double>(factor, x, downdate, applied, on.stream());
  } else {
    STD_TORCH_CHECK(factor.scalar_type() == ScalarType::Float, "factor must be float64 or float32");
    run<float>(factor, x, downdate, applied, on.stream());
  }
  return applied;
}

}  // namespace rome_fast
