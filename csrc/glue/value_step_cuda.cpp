#include "glue/ops_cuda.h"
#include "glue/tensors_cuda.h"
#include "kernels/cuda/chosen.h"
#include "kernels/cuda/value_step.h"

namespace rome_fast {
namespace {

template <class T>
Matrix<T> matrix(const Tensor& tensor, const char* name, int64_t rows, int64_t cols,
                 ScalarType type) {
  check_shape(tensor, name, rows, cols);
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must be of the type of deltas");
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1)};
}

}  // namespace

void value_step_cuda(Tensor deltas, Tensor mean, Tensor square, Tensor n_steps, Tensor history,
                     Tensor active, const Tensor& gradients, const Tensor& losses,
                     const Tensor& right, const Tensor& radii, const Tensor& decays, double lr,
                     double stop_loss, bool mean_loss_suffices) {
  STD_TORCH_CHECK(deltas.dim() == 2 && history.dim() == 2,
                  "deltas and history must have 2 dimensions");
  STD_TORCH_CHECK(n_steps.dim() == 0 && n_steps.scalar_type() == ScalarType::Long,
                  "n_steps must be one int64");
  const int64_t n = deltas.size(0), d = deltas.size(1), max_steps = history.size(0);
  const ScalarType type = deltas.scalar_type();
  for (const Tensor* flags : {static_cast<const Tensor*>(&active), &right}) {
    check_size(*flags, "active and right", n);
    STD_TORCH_CHECK(flags->scalar_type() == ScalarType::Bool, "active and right must be bool");
  }
  check_shape(gradients, "gradients", n, d);
  for (const Tensor* vector : {&losses, &radii, &decays}) {
    check_size(*vector, "losses, radii and decays", n);
  }
  const OnDeviceOf on(deltas);
  const Tensor gradient_rows = as_vector(gradients, type), loss = as_vector(losses, type);
  const Tensor radius = as_vector(radii, type), decay = as_vector(decays, type);
  const Tensor is_right = torch::stable::contiguous(right);
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    const ValueStepParams<T> params{matrix<T>(deltas, "deltas", n, d, type),
                                    matrix<T>(mean, "mean", n, d, type),
                                    matrix<T>(square, "square", n, d, type),
                                    data<int64_t>(n_steps),
                                    matrix<T>(history, "history", max_steps, n, type),
                                    data<bool>(active),
                                    active.stride(0),
                                    data<T>(gradient_rows),
                                    data<T>(loss),
                                    data<bool>(is_right),
                                    data<T>(radius),
                                    data<T>(decay),
                                    n,
                                    d,
                                    max_steps,
                                    lr,
                                    stop_loss,
                                    mean_loss_suffices};
    (naive_is_chosen() ? value_step_naive<T> : value_step<T>)(params, on.stream());
  };
  if (type == ScalarType::Double) {
    run(TypeTag<double>{});
  } else {
    STD_TORCH_CHECK(type == ScalarType::Float, "deltas must be float64 or float32");
    run(TypeTag<float>{});
  }
}

}  // namespace rome_fast
