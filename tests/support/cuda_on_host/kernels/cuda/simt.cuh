// Launches of csrc/kernels/cuda/simt.cuh on the host.
#pragma once

#include <cuda_runtime.h>

namespace rome_fast {

template <class Storage>
Storage& shared_storage() {
  if (sizeof(Storage) > emulated::shared_size()) emulated::fail("shared memory is too small");
  return *static_cast<Storage*>(emulated::shared_base());
}

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) emulated::fail(cudaGetErrorString(error));
}

// Few of them, so that a persistent grid of small tests has several tiles a block.
inline int multiprocessor_count() { return 3; }

inline int compute_capability() { return 90; }

// Little, so that a small test's input is taken in parts.
inline constexpr int64_t kMaxWorkspace = 64 << 10;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            Args... args) {
  if (block.x * block.y * block.z > 1024) emulated::fail("more than 1024 threads a block");
  if (shared_bytes > (227u << 10)) emulated::fail("more than 227 KB of shared memory");
  if (grid.y > 65535 || grid.z > 65535) emulated::fail("a grid's y and z end at 65535");
  emulated::run_grid(grid, block, shared_bytes, [&] { kernel(static_cast<Params>(args)...); });
}

}  // namespace rome_fast
