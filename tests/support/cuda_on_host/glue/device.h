// csrc/glue/device.h on the host, which is the only device and has one stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/tensor.h>

namespace rome_fast {

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

}  // namespace rome_fast
