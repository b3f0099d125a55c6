#include "kernels/cpu/second_moment.h"

#include <memory>
#include <new>
#include <type_traits>

#include "kernels/cpu/second_moment_blocking.h"

namespace rome_fast {
namespace {

constexpr int64_t kLine = 64;  // bytes of a cache's line
constexpr std::align_val_t kPage{4096};

struct FreePacked {
  void operator()(void* packed) const { ::operator delete(packed, kPage); }
};

// Packed keys begin with a page, so that no vector of them lies across two lines of a cache.
template <class Element>
using Packed = std::unique_ptr<Element[], FreePacked>;

template <class Element>
Packed<Element> allocate_packed(int64_t size) {
  return Packed<Element>(static_cast<Element*>(::operator new(size * sizeof(Element), kPage)));
}

}  // namespace
}  // namespace rome_fast

#define ROME_FAST_BODY "kernels/cpu/second_moment_body.h"
#define ROME_FAST_BODY_HAS_BF16_DOT
#include "kernels/cpu/foreach_isa.h"

namespace rome_fast {

template <class Key, class Sum>
void second_moment(const SecondMomentParams<Key, Sum>& params, const Pool& pool) {
#if defined(ROME_FAST_HAS_BF16_DOT)
  if constexpr (std::is_same_v<Key, BFloat16> && std::is_same_v<Sum, float>) {
    // A compensated sum is asked for where rounding matters: its products stay as exact as they
    // are.
    if (active_isa() == Isa::kAvx512Bf16 && params.compensation == nullptr) {
      return avx512_bf16::second_moment(params, pool);
    }
  }
#endif
  ROME_FAST_CALL_ISA(second_moment, params, pool);
}

#define ROME_FAST_INSTANTIATE(Key, Sum) \
  template void second_moment(const SecondMomentParams<Key, Sum>&, const Pool&);
ROME_FAST_INSTANTIATE(double, double)
ROME_FAST_INSTANTIATE(float, double)
ROME_FAST_INSTANTIATE(BFloat16, double)
ROME_FAST_INSTANTIATE(Half, double)
ROME_FAST_INSTANTIATE(float, float)
ROME_FAST_INSTANTIATE(BFloat16, float)
ROME_FAST_INSTANTIATE(Half, float)
#undef ROME_FAST_INSTANTIATE

}  // namespace rome_fast
