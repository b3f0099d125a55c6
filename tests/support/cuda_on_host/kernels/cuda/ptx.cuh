// The instructions of csrc/kernels/cuda/ptx.cuh on the host, as the PTX ISA defines them.
//
// What is asynchronous happens at the worst time that the ISA allows: copies by cp.async land and
// products of a warpgroup read shared memory at the wait for them, copies of boxes land at once.
// Until the wait, what will be written is NaN.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <deque>
#include <type_traits>
#include <vector>

#include "fibers.h"

#define ROME_FAST_HAS_WGMMA

namespace emulated {

constexpr unsigned kMaxThreads = 1024;
constexpr uint32_t kSharedStart = 1024;  // as on the card, where the first KB is the system's

inline unsigned char* shared_at(uint32_t address, size_t size) {
  if (address < kSharedStart || address - kSharedStart + size > shared_size()) {
    fail("an address outside of shared memory");
  }
  return static_cast<unsigned char*>(shared_base()) + (address - kSharedStart);
}

// The nearest float that is not farther from zero.
inline float cut_off(double x) {
  if (std::fabs(x) >= 0x1p128) return std::copysign(INFINITY, static_cast<float>(x));
  const float near = static_cast<float>(x);
  return std::fabs(static_cast<double>(near)) > std::fabs(x) ? std::nextafterf(near, 0) : near;
}

// How tensor cores add, which no document says: the sum and the exact products of a step lose what
// lies more than kKept places below the first one of the largest of them, are added exactly, and
// the result is cut off to a float. Of sums of squares of normal keys, in flushes of 4096 rows, an
// H200 lost 9.6e-6 (bfloat16) and 1.9e-5 (float16); 25 places lose 1.03e-5 and 2.01e-5 of them, 26
// places 7.7e-6 and 1.21e-5. It is assumed that numbers too small to be normal count as they are,
// in operands, sums and results.
constexpr int kKept = 25;

template <int kDepth>
float add_products(float sum, const double (&products)[kDepth]) {
  double plain = sum, largest = std::fabs(sum);
  for (const double product : products) {
    plain += product;
    largest = std::fmax(largest, std::fabs(product));
  }
  if (!std::isfinite(plain) || largest == 0) return static_cast<float>(plain);
  const double scale = std::ldexp(1.0, kKept - std::ilogb(largest));
  int64_t total = static_cast<int64_t>(sum * scale);
  for (const double product : products) total += static_cast<int64_t>(product * scale);
  return cut_off(static_cast<double>(total) / scale);
}

template <class Key>
float value_of(uint16_t bits) {
  Key key;
  std::memcpy(&key, &bits, 2);
  if constexpr (std::is_same_v<Key, __nv_bfloat16>) {
    return __bfloat162float(key);
  } else {
    static_assert(std::is_same_v<Key, __half>);
    return __half2float(key);
  }
}

}  // namespace emulated

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

inline uint32_t shared_address(const void* shared) {
  const auto* base = static_cast<const unsigned char*>(emulated::shared_base());
  const auto offset = static_cast<const unsigned char*>(shared) - base;
  if (offset < 0 || static_cast<size_t>(offset) >= emulated::shared_size()) {
    emulated::fail("a pointer outside of shared memory");
  }
  return emulated::kSharedStart + static_cast<uint32_t>(offset);
}

inline int64_t computed_here(int64_t value) { return value; }
inline void prefetch_to_l2(const void*) {}

}  // namespace rome_fast

#include "ptx_warp.cuh"
#include "ptx_warpgroup.cuh"
