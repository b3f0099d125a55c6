// Tensor cores of sm_90a: 128 x 256 tiles by wgmma, keys copied by the tensor copy engine. What the
// warpgroups of a block do is in second_moment_warpgroups.cuh.
#include <cuda.h>

#include <cstdint>
#include <stdexcept>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/second_moment_planes.cuh"
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

template <int kPlanes, class Key, class Sum>
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
    if (warp == 0 && threadIdx.x == 0) produce<kPlanes>(s, map, p.n, p.d);
    if (warp == 1 && p.mask != nullptr) clean(s, p.mask, p.mask_stride, p.n, p.d);
  } else {
    take_registers<kConsumerRegisters>();
    consume<kPlanes>(s, p, warpgroup - 1);
  }
#endif
}

// Whether more than the stub was compiled for this device.
template <int kPlanes, class Key, class Sum>
bool is_compiled() {
  cudaFuncAttributes attributes;
  const auto kernel = &second_moment_wgmma_kernel<kPlanes, Key, Sum>;
  return cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(kernel)) == cudaSuccess &&
         attributes.maxThreadsPerBlock >= kThreads;
}

// Keys that are several planes fill whole slabs, one plane below the other.
template <int kPlanes, class Key, class Sum>
void launch_wgmma(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  CUtensorMap map;
  if (!describe_matrix(p.keys, kPlanes * p.n, p.d, p.keys_row_stride, kDepth, kBox, &map))
    throw std::runtime_error("cuTensorMapEncodeTiled refused the keys");
  const int tiles = Order(p.d, kTileM).size();
  const int blocks = tiles < multiprocessor_count() ? tiles : multiprocessor_count();
  launch(second_moment_wgmma_kernel<kPlanes, Key, Sum>, dim3(blocks), dim3(kThreads),
         sizeof(WgmmaStorage), stream, map, p);
}

template <int kPlanes, class Sum>
void launch_by_planes(const SecondMomentParams<float, Sum>& p, cudaStream_t stream) {
  planes::for_each_part<kPlanes>(p, stream, [&](const SecondMomentParams<BFloat16, Sum>& part) {
    launch_wgmma<kPlanes>(part, stream);
  });
}

}  // namespace

template <class Key, class Sum>
bool wgmma_can_run(const SecondMomentParams<Key, Sum>& p) {
  if (compute_capability() != 90 || find_map_encoder() == nullptr) return false;
  // Coordinates of the copy engine are 32-bit; rows that overlap are not for it either.
  if (p.n > INT32_MAX - kDepth || p.d > INT32_MAX - kTileN) return false;
  if constexpr (std::is_same_v<Key, float>) {
    return p.allow_tf32 ? is_compiled<2, BFloat16, Sum>() : is_compiled<3, BFloat16, Sum>();
  } else {
    if (p.keys_col_stride != 1 || p.keys_row_stride < p.d) return false;
    if (p.keys_row_stride * sizeof(Key) % 16 != 0) return false;
    if (reinterpret_cast<uintptr_t>(p.keys) % 16 != 0) return false;
    return is_compiled<1, Key, Sum>();
  }
}

template <class Key, class Sum>
size_t wgmma_bytes(const SecondMomentParams<Key, Sum>& p) {
  if constexpr (std::is_same_v<Key, float>) {
    return p.allow_tf32 ? planes::plane_bytes<2>(p.n, p.d) : planes::plane_bytes<3>(p.n, p.d);
  } else {
    return 0;
  }
}

template <class Key, class Sum>
void second_moment_wgmma(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  if constexpr (std::is_same_v<Key, float>) {
    return p.allow_tf32 ? launch_by_planes<2>(p, stream) : launch_by_planes<3>(p, stream);
  } else {
    launch_wgmma<1>(p, stream);
  }
}

#define ROME_FAST_INSTANTIATE(Key, Sum)                             \
  template bool wgmma_can_run(const SecondMomentParams<Key, Sum>&); \
  template size_t wgmma_bytes(const SecondMomentParams<Key, Sum>&); \
  template void second_moment_wgmma(const SecondMomentParams<Key, Sum>&, cudaStream_t);
ROME_FAST_INSTANTIATE(float, double)
ROME_FAST_INSTANTIATE(BFloat16, double)
ROME_FAST_INSTANTIATE(Half, double)
ROME_FAST_INSTANTIATE(float, float)
ROME_FAST_INSTANTIATE(BFloat16, float)
ROME_FAST_INSTANTIATE(Half, float)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
