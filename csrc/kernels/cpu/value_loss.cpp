// A row in two passes, and one more for the KL: the first finds its largest logit and the sum of
// exponentials, rescaled where a larger logit comes, the last writes the gradient. A row of 256 Ki
// words in float32 is 1 MB, which the later passes find in the cache.
#include "kernels/cpu/value_loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/exp.h"

namespace rome_fast {
namespace {

// Words that are widened at once, into the first-level cache.
constexpr int64_t kBlock = 1024;

// A thread's barrier costs a time slice on a busy machine; this many words are about 1 ms.
constexpr int64_t kGrainWords = 1 << 20;

template <class T>
constexpr T kLowest = -std::numeric_limits<T>::infinity();

}  // namespace
}  // namespace rome_fast

#define ROME_FAST_BODY "kernels/cpu/value_loss_body.h"
#include "kernels/cpu/foreach_isa.h"

namespace rome_fast {
namespace {

template <class Logit>
void value_loss_rows(const ValueLossParams<Logit>& params, const Pool& pool) {
  ROME_FAST_CALL_ISA(value_loss_rows, params, pool);
}

}  // namespace

template <class Logit>
void value_loss(const ValueLossParams<Logit>& p, const Pool& pool) {
  using T = Compute<Logit>;
  value_loss_rows(p, pool);
  for (int64_t edit = 0; edit < p.n_edits; ++edit) {
    T sum = 0;
    int64_t count = 0;
    bool right = true;
    for (int64_t read = 0; read < p.n_reads; ++read) {
      if (p.edit_of_read[read] != edit) continue;
      sum += p.row_loss[read];
      right &= p.row_right[read];
      ++count;
    }
    p.losses[edit] = sum / T(count) + T(p.kl_factor) * p.row_loss[p.n_reads + edit];
    p.right[edit] = right;
  }
}

template void value_loss(const ValueLossParams<double>&, const Pool&);
template void value_loss(const ValueLossParams<float>&, const Pool&);
template void value_loss(const ValueLossParams<BFloat16>&, const Pool&);
template void value_loss(const ValueLossParams<Half>&, const Pool&);

}  // namespace rome_fast
