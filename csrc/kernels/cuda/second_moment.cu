// Chooses the kernel.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/second_moment.h"
#include "kernels/cuda/simt.cuh"

namespace rome_fast {
namespace {

enum class Kernel { kNaive, kMma, kWgmma };

// Read at every call, so that a test can go from one kernel to the next.
Kernel fastest_allowed() {
  const char* wanted = std::getenv("ROME_FAST_CUDA_KERNEL");
  const std::string name = wanted != nullptr && *wanted != '\0' ? wanted : "wgmma";
  if (name == "wgmma") return Kernel::kWgmma;
  if (name == "mma") return Kernel::kMma;
  if (name == "naive") return Kernel::kNaive;
  throw std::runtime_error("ROME_FAST_CUDA_KERNEL must be wgmma, mma or naive, got " + name);
}

template <class Key, class Sum>
Kernel choose(const SecondMomentParams<Key, Sum>& p) {
  const Kernel allowed = fastest_allowed();
  if (std::is_same_v<Key, double> || allowed == Kernel::kNaive || compute_capability() < 80)
    return Kernel::kNaive;
  if constexpr (!std::is_same_v<Key, double>) {
    if (allowed == Kernel::kWgmma && wgmma_can_run(p)) return Kernel::kWgmma;
  }
  return Kernel::kMma;
}

}  // namespace

template <class Key, class Sum>
void second_moment(const SecondMomentParams<Key, Sum>& p, cudaStream_t stream) {
  if (p.n == 0 || p.d == 0) return;
  const Kernel kernel = choose(p);
  if constexpr (!std::is_same_v<Key, double>) {
    if (kernel == Kernel::kWgmma) return second_moment_wgmma(p, stream);
    if (kernel == Kernel::kMma) return second_moment_mma(p, stream);
  }
  second_moment_naive(p, stream);
}

template <class Key, class Sum>
size_t second_moment_bytes(const SecondMomentParams<Key, Sum>& p) {
  if (p.n == 0 || p.d == 0) return 0;
  if constexpr (!std::is_same_v<Key, double>) {
    if (choose(p) == Kernel::kWgmma) return wgmma_bytes(p);
  }
  return 0;
}

#define ROME_FAST_INSTANTIATE(Key, Sum)                                           \
  template void second_moment(const SecondMomentParams<Key, Sum>&, cudaStream_t); \
  template size_t second_moment_bytes(const SecondMomentParams<Key, Sum>&);
ROME_FAST_INSTANTIATE(double, double)
ROME_FAST_INSTANTIATE(float, double)
ROME_FAST_INSTANTIATE(BFloat16, double)
ROME_FAST_INSTANTIATE(Half, double)
ROME_FAST_INSTANTIATE(float, float)
ROME_FAST_INSTANTIATE(BFloat16, float)
ROME_FAST_INSTANTIATE(Half, float)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
