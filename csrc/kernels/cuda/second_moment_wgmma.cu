// Tensor cores of sm_90a: 128 x 256 tiles by wgmma, keys copied by the tensor copy engine. What the
// warpgroups of a block do is in second_moment_warpgroups.cuh.
#include <cuda.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_tiles.cuh"
#include "kernels/cuda/second_moment_warpgroups.cuh"
#include "kernels/cuda/simt.cuh"
#include "kernels/cuda/tensor_map.cuh"

namespace rome_fast {
namespace {

using namespace warpgroups;

// Where wgmma does not exist only a stub is compiled, and it says so by its launch bounds.
#if defined(__CUDA_ARCH__) && !defined(ROME_FAST_HAS_WGMMA)
#define ROME_FAST_WGMMA_BOUNDS __launch_bounds__(32)
#else
#define ROME_FAST_WGMMA_BOUNDS __launch_bounds__(kThreads, 1)
#endif

template <class Key, class Sum>
__global__ void ROME_FAST_WGMMA_BOUNDS second_moment_wgmma_kernel(
    const __grid_constant__ CUtensorMap map, const SecondMomentParams<Key, Sum> p) {
#if defined(ROME_FAST_HAS_WGMMA)
  WgmmaStorage& s = shared_storage<WgmmaStorage>();
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kStages; ++slot) {
      init_barrier(&s.full[slot], 1);
      init_barrier(&s.clean[slot], 32);
      init_barrier(&s.empty[slot], kConsumers * kWarpgroup / 32);
    }
    fence_async_proxy();
  }
  __syncthreads();
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    give_registers_back<kProducerRegisters>();
    const int warp = threadIdx.x / 32;
    if (warp == 0 && threadIdx.x == 0) produce(s, map, p.n, p.d);
    if (warp == 1 && p.mask != nullptr) clean(s, p.mask, p.mask_stride, p.n, p.d);
  } else {
    take_registers<kConsumerRegisters>();
    consume(s, p, warpgroup - 1);
  }
#endif
}

// Whether more than the stub was compiled for this device.
template <class Key, class Sum>
bool is_compiled() {
  cudaFuncAttributes attributes;
  const void* kernel = reinterpret_cast<const void*>(&second_moment_wgmma_kernel<Key, Sum>);
  return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
         attributes.maxThreadsPerBlock >= kThreads;
}

}  // namespace

template <class Key, class Sum>
bool wgmma_can_run(const SecondMomentParams<Key, Sum>& p) {
  if (compute_capability() != 90) return false;
  // Coordinates of the copy engine are 32-bit; rows that overlap are not for it either.
  if (p.n > INT32_MAX - kDepth || p.d > INT32_MAX - kTileN) return false;
  if (p.keys_col_stride != 1 || p.keys_row_stride < p.d) return false;
  if (p.keys_row_stride * sizeof(Key) % 16 != 0) return false;
  if (reinterpret_cast<uintptr_t>(p.keys) % 16 != 0) return false;
  return find_map_encoder() != nullptr && is_compiled<Key, Sum>();
}

template <class Key, class Sum>
void second_moment_wgmma(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  CUtensorMap map;
  if (!describe_matrix(p.keys, p.n, p.d, p.keys_row_stride, kDepth, kBox, &map))
    throw std::runtime_error("cuTensorMapEncodeTiled refused the keys");
  const int tiles = Order(p.d, kTileM).size();
  const int blocks = tiles < multiprocessor_count() ? tiles : multiprocessor_count();
  launch(second_moment_wgmma_kernel<Key, Sum>, dim3(blocks), dim3(kThreads), sizeof(WgmmaStorage),
         stream, map, p);
}

#define ROME_FAST_INSTANTIATE(Key, Sum)                             \
  template bool wgmma_can_run(const SecondMomentParams<Key, Sum>&); \
  template void second_moment_wgmma(const SecondMomentParams<Key, Sum>&, cudaStream_t);
ROME_FAST_INSTANTIATE(BFloat16, double)
ROME_FAST_INSTANTIATE(Half, double)
ROME_FAST_INSTANTIATE(BFloat16, float)
ROME_FAST_INSTANTIATE(Half, float)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
