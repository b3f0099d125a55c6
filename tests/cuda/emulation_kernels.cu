// Small kernels, right and wrong, by which the emulation itself is tested.
#include <cstdint>
#include <cstring>
#include <exception>

#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/simt.cuh"

using namespace rome_fast;

namespace {

struct Values {
  float scratch[kMaxWarps];
  float values[256];
};

__global__ void sum_kernel(const float* x, int n, float* sums) {
  Values& shared = shared_storage<Values>();
  float mine = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) mine += x[i];
  mine = block_sum(mine, shared.scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = mine;
}

__global__ void reverse_kernel(const float* x, float* y, bool waits) {
  Values& shared = shared_storage<Values>();
  shared.values[threadIdx.x] = x[threadIdx.x];
  if (waits) __syncthreads();
  y[threadIdx.x] = shared.values[blockDim.x - 1 - threadIdx.x];
}

__global__ void some_return_kernel(float* y) {
  if (threadIdx.x >= 40) return;
  __syncthreads();
  y[threadIdx.x] = __syncthreads_count(threadIdx.x % 2 == 0);
}

__global__ void half_a_warp_waits_kernel() {
  if (threadIdx.x < 16) __shfl_sync(kWholeWarp, 1, 0);
}

__global__ void writes_behind_kernel() { shared_storage<Values>().values[256] = 1; }

__global__ void writes_before_kernel() { shared_storage<Values>().scratch[-1] = 1; }

__global__ void different_barriers_kernel() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads_count(1);
  }
}

// A block waits for the one after it, which has not been given its ticket.
__global__ void waits_for_a_later_block_kernel(unsigned* ticket, unsigned* flags) {
  if (threadIdx.x != 0) return;
  const unsigned mine = atomicAdd(ticket, 1u);
  while (mine + 1 < gridDim.x && load_acquire(&flags[mine + 1]) == 0) {
  }
  store_release(&flags[mine], 1);
}

__global__ void round_kernel(const float* x, int n, float* bfloat16, float* half) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    bfloat16[i] = widen(narrow<BFloat16>(x[i]));
    half[i] = widen(narrow<Half>(x[i]));
  }
}

__global__ void round_to_tf32_kernel(const float* x, int n, float* rounded) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) rounded[i] = tf32_as_float(round_to_tf32(x[i]));
}

// out[16][8] += a[16][8] b[8][8], of whatever bits.
__global__ void multiply_tf32_kernel(const float* a, const float* b, float* out) {
  const int row = threadIdx.x / 4, k = threadIdx.x % 4, col = 2 * k;
  uint32_t a_bits[4], b_bits[2];
  for (int i = 0; i < 4; ++i) {
    a_bits[i] = __float_as_uint(a[(row + i % 2 * 8) * 8 + k + i / 2 * 4]);
  }
  for (int i = 0; i < 2; ++i) b_bits[i] = __float_as_uint(b[(k + i * 4) * 8 + row]);
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = out[(row + i / 2 * 8) * 8 + col + i % 2];
  multiply_m16n8k8_tf32(sum, a_bits, b_bits);
  for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + col + i % 2] = sum[i];
}

template <class Launch>
const char* said(const Launch& launch) {
  static char message[256];
  message[0] = 0;
  try {
    launch();
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), sizeof(message) - 1);
  }
  return message;
}

}  // namespace

extern "C" {
const char* run_sum(const float* x, int n, float* sums) {
  return said([&] { launch(sum_kernel, 3, 96, sizeof(Values), nullptr, x, n, sums); });
}
const char* run_reverse(const float* x, float* y, bool waits) {
  return said([&] { launch(reverse_kernel, 1, 256, sizeof(Values), nullptr, x, y, waits); });
}
const char* run_some_return(float* y) {
  return said([&] { launch(some_return_kernel, 1, 64, 0, nullptr, y); });
}
const char* run_half_a_warp_waits() {
  return said([&] { launch(half_a_warp_waits_kernel, 1, 64, 0, nullptr); });
}
const char* run_writes_behind() {
  return said([&] { launch(writes_behind_kernel, 1, 32, sizeof(Values), nullptr); });
}
const char* run_writes_before() {
  return said([&] { launch(writes_before_kernel, 1, 32, sizeof(Values), nullptr); });
}
const char* run_different_barriers() {
  return said([&] { launch(different_barriers_kernel, 1, 64, 0, nullptr); });
}
const char* run_waits_for_a_later_block() {
  unsigned ticket = 0, flags[2] = {};
  return said([&] { launch(waits_for_a_later_block_kernel, 2, 64, 0, nullptr, &ticket, flags); });
}
const char* run_round(const float* x, int n, float* bfloat16, float* half) {
  return said([&] { launch(round_kernel, 1, 64, 0, nullptr, x, n, bfloat16, half); });
}
const char* run_round_to_tf32(const float* x, int n, float* rounded) {
  return said([&] { launch(round_to_tf32_kernel, 1, 64, 0, nullptr, x, n, rounded); });
}
const char* run_multiply_tf32(const float* a, const float* b, float* out) {
  return said([&] { launch(multiply_tf32_kernel, 1, 32, 0, nullptr, a, b, out); });
}
}
