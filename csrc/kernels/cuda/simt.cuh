// Launching kernels, and the shared memory that they are launched with.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace rome_fast {

// The block's dynamic shared memory as one plain struct, of which it was launched with the size.
template <class Storage>
__device__ __forceinline__ Storage& shared_storage() {
  extern __shared__ __align__(1024) unsigned char rome_fast_shared[];
  return *reinterpret_cast<Storage*>(rome_fast_shared);
}

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("rome_fast, CUDA: ") + cudaGetErrorString(error));
  }
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Both are the current device's.
inline int multiprocessor_count() { return device_attribute(cudaDevAttrMultiProcessorCount); }

inline int compute_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
         device_attribute(cudaDevAttrComputeCapabilityMinor);
}

// The most memory that a kernel asks for to work in where it can take its input in parts.
inline constexpr int64_t kMaxWorkspace = int64_t{256} << 20;

// Launches nothing for an empty grid. Throws std::runtime_error where CUDA refuses.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            cudaStream_t stream, Args... args) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > (48u << 10)) {  // beyond this a kernel has to ask
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...));
}

}  // namespace rome_fast
