// A block an edit: norm, loss, end, Adam, norm again, ball; every matrix is read and written once,
// the offsets twice. 16,384 float32 elements are 0.5 MB, a few microseconds of one multiprocessor.
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/value_step_body.cuh"

namespace rome_fast {
namespace {

constexpr int kThreads = 512;

struct Storage {
  double sums[kMaxWarps];
};

template <class T>
__device__ T norm_of(const ValueStepParams<T>& params, int64_t edit, double* scratch) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < params.d_value; i += blockDim.x) {
    const double x = params.deltas(edit, i);
    sum += x * x;
  }
  return static_cast<T>(sqrt(block_sum(sum, scratch)));
}

template <class T>
__global__ void __launch_bounds__(kThreads) value_step_kernel(ValueStepParams<T> params) {
  Storage& shared = shared_storage<Storage>();
  const int64_t edit = blockIdx.x, step = *params.n_steps;
  bool& active = params.active[edit * params.active_stride];
  if (!active || step >= params.max_steps) return;

  const T norm = norm_of(params, edit, shared.sums);  // behind its barriers all have read active
  const T total = params.losses[edit] + params.decays[edit] * norm;
  const bool moves = goes_on(params, edit, total, step);
  if (threadIdx.x == 0) {
    params.history(step, edit) = total;
    active = moves;
  }
  if (!moves) return;

  const AdamStep<T> adam(params.lr, step);
  const T decay = norm > T(0) ? params.decays[edit] / norm : T(0);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < params.d_value; i += blockDim.x) {
    T& delta = params.deltas(edit, i);
    const T gradient = params.gradients[edit * params.d_value + i] + decay * delta;
    delta = adam.move(delta, gradient, params.mean(edit, i), params.square(edit, i));
    sum += double(delta) * double(delta);
  }
  const T length = static_cast<T>(sqrt(block_sum(sum, shared.sums)));
  if (!(length > params.radii[edit])) return;
  const T shrink = params.radii[edit] / length;
  for (int64_t i = threadIdx.x; i < params.d_value; i += blockDim.x) {
    params.deltas(edit, i) *= shrink;
  }
}

// By itself, since all blocks of the step read it.
__global__ void count_step_kernel(int64_t* n_steps) { *n_steps += 1; }

}  // namespace

template <class T>
void value_step(const ValueStepParams<T>& params, cudaStream_t stream) {
  launch(value_step_kernel<T>, dim3(static_cast<unsigned>(params.n_edits)), dim3(kThreads),
         sizeof(Storage), stream, params);
  launch(count_step_kernel, dim3(1), dim3(1), 0, stream, params.n_steps);
}

template void value_step(const ValueStepParams<float>&, cudaStream_t);
template void value_step(const ValueStepParams<double>&, cudaStream_t);

}  // namespace rome_fast
