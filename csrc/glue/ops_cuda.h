// The CUDA kernels as the dispatcher calls them; schemas are in rome_fast/ops/_schema.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace rome_fast {

using torch::stable::Tensor;

}  // namespace rome_fast
