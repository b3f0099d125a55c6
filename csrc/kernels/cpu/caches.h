// The data caches of a core, for which the kernels choose their blocks.
#pragma once

#include <cstdint>

namespace rome_fast {

struct Caches {
  int64_t l1;  // bytes
  int64_t l2;
};

// Read on the first call. ROME_FAST_CACHES=L1,L2 in KiB exists so that the blocks of other machines
// can be tested on one.
const Caches& caches();

}  // namespace rome_fast
