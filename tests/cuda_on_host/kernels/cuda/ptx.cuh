// The instructions of csrc/kernels/cuda/ptx.cuh on the host, as the PTX ISA defines them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fibers.h"

namespace rome_fast {

// Lets another fiber run first, so that a loop over it ends.
inline void let_others_run() {
  bool waited = false;
  emulated::wait_until([&] { return waited || !(waited = true); });
}

inline unsigned load_acquire(const unsigned* flag) {
  let_others_run();
  return *const_cast<const volatile unsigned*>(flag);
}

inline void store_release(unsigned* flag, unsigned value) {
  *const_cast<volatile unsigned*>(flag) = value;
}

inline unsigned long long load_relaxed(const unsigned long long* at) {
  let_others_run();
  return *const_cast<const volatile unsigned long long*>(at);
}

inline void store_relaxed(unsigned long long* at, unsigned long long value) {
  *const_cast<volatile unsigned long long*>(at) = value;
}

}  // namespace rome_fast
