// The instructions of csrc/kernels/cuda/ptx.cuh on the host, as the PTX ISA defines them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fibers.h"

namespace rome_fast {

// Lets another fiber run first, so that a loop over it ends.
inline unsigned load_acquire(const unsigned* flag) {
  bool waited = false;
  emulated::wait_until([&] { return waited || !(waited = true); });
  return *const_cast<const volatile unsigned*>(flag);
}

inline void store_release(unsigned* flag, unsigned value) {
  *const_cast<volatile unsigned*>(flag) = value;
}

}  // namespace rome_fast
