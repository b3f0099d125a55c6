#include "kernels/cpu/second_moment.h"

#include <memory>

#define ROME_FAST_BODY "kernels/cpu/second_moment_body.h"
#include "kernels/cpu/foreach_isa.h"

namespace rome_fast {

template <class Key, class Sum>
void second_moment(const SecondMomentParams<Key, Sum>& params, const Pool& pool) {
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
