// What both kernels compute of an edit and of an element.
#pragma once

#include <cmath>

#include "kernels/cuda/value_step.h"

namespace rome_fast {

// Adam's, as torch has them.
constexpr double kBeta1 = 0.9;
constexpr double kBeta2 = 0.999;
constexpr double kEpsilon = 1e-8;

// Whether the search of an edit goes on after a loss, at a step counted from 0.
template <class T>
__device__ bool goes_on(const ValueStepParams<T>& params, int64_t edit, T total, int64_t step) {
  const bool is_low = total < static_cast<T>(params.stop_loss);
  const bool is_found = is_low && (params.mean_loss_suffices || params.right[edit]);
  return !is_found && isfinite(total) && step + 1 < params.max_steps;
}

// What is the same for all elements of a step.
template <class T>
struct AdamStep {
  T rate;        // lr over the bias of the mean
  T correction;  // 1 over the bias of the square

  __device__ AdamStep(double lr, int64_t step)
      : rate(static_cast<T>(lr / (1.0 - pow(kBeta1, double(step + 1))))),
        correction(static_cast<T>(1.0 - pow(kBeta2, double(step + 1)))) {}

  // The element's new offset, not yet in its ball; its moments are updated.
  __device__ T move(T delta, T gradient, T& mean, T& square) const {
    mean += static_cast<T>(1.0 - kBeta1) * (gradient - mean);
    square = static_cast<T>(kBeta2) * square + static_cast<T>(1.0 - kBeta2) * gradient * gradient;
    return delta - rate * mean / (sqrt(square / correction) + static_cast<T>(kEpsilon));
  }
};

}  // namespace rome_fast
