// One thread for everything: what value_step.cu is compared with.
#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/value_step_body.cuh"

namespace rome_fast {
namespace {

template <class T>
__device__ T norm_of(const ValueStepParams<T>& params, int64_t edit) {
  double sum = 0;
  for (int64_t i = 0; i < params.d_value; ++i) {
    sum += double(params.deltas(edit, i)) * double(params.deltas(edit, i));
  }
  return static_cast<T>(sqrt(sum));
}

template <class T>
__global__ void value_step_naive_kernel(ValueStepParams<T> params) {
  const int64_t step = (*params.n_steps)++;
  if (step >= params.max_steps) return;
  for (int64_t edit = 0; edit < params.n_edits; ++edit) {
    bool& active = params.active[edit * params.active_stride];
    if (!active) continue;
    const T norm = norm_of(params, edit), decay = params.decays[edit];
    const T total = params.losses[edit] + decay * norm;
    params.history(step, edit) = total;
    active = goes_on(params, edit, total, step);
    if (!active) continue;
    const AdamStep<T> adam(params.lr, step);
    for (int64_t i = 0; i < params.d_value; ++i) {
      T& delta = params.deltas(edit, i);
      const T of_decay = norm > T(0) ? decay * delta / norm : T(0);
      const T gradient = params.gradients[edit * params.d_value + i] + of_decay;
      delta = adam.move(delta, gradient, params.mean(edit, i), params.square(edit, i));
    }
    const T length = norm_of(params, edit);
    if (!(length > params.radii[edit])) continue;
    for (int64_t i = 0; i < params.d_value; ++i) {
      params.deltas(edit, i) *= params.radii[edit] / length;
    }
  }
}

}  // namespace

template <class T>
void value_step_naive(const ValueStepParams<T>& params, cudaStream_t stream) {
  launch(value_step_naive_kernel<T>, dim3(1), dim3(1), 0, stream, params);
}

template void value_step_naive(const ValueStepParams<float>&, cudaStream_t);
template void value_step_naive(const ValueStepParams<double>&, cudaStream_t);

}  // namespace rome_fast
