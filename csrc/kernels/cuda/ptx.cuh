// Every instruction that CUDA C++ has no name for. Nothing else holds inline assembly.
//
// A thread block's shared memory is meant wherever a plain pointer is written or read "in shared
// memory". What needs Hopper is used by kernels that are compiled for it only.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

// wgmma and setmaxnreg exist for sm_90a alone: neither sm_90 nor a later architecture has them.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define ROME_FAST_HAS_WGMMA
#endif

namespace rome_fast {

// What was written before store_release by the thread that wrote the flag (and, after a barrier, by
// its block) is seen by who reads the flag with load_acquire. To wait is to call it in a loop.
__device__ __forceinline__ unsigned load_acquire(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

__device__ __forceinline__ void store_release(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// For a value that says by itself whether it is there, and orders nothing else.
__device__ __forceinline__ unsigned long long load_relaxed(const unsigned long long* at) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(at) : "memory");
  return value;
}

__device__ __forceinline__ void store_relaxed(unsigned long long* at, unsigned long long value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(at), "l"(value) : "memory");
}

// The 32-bit address that instructions on shared memory take.
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// The value, computed where this is called: the compiler does not move the work out of a loop,
// where its results would have to be kept in registers.
__device__ __forceinline__ int64_t computed_here(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

__device__ __forceinline__ void prefetch_to_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// ---- sm_80: asynchronous copies and warp-wide products ------------------------------------------

// shared[0, 16) = global[0, bytes), then zeros; both are aligned to 16. With 0 bytes nothing is
// read.
__device__ __forceinline__ void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// All copies of this thread have landed, but for those of its kPending latest commits.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements in shared memory, transposed. Lane 8 q + r names row r of
// matrix q, and gets of matrix q the elements (2 (lane % 4), lane / 4) and the one below it.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// sum += a b for a 16x16 a and a 16x8 b of Key, which is BFloat16 or Half.
template <class Key>
__device__ __forceinline__ void multiply_m16n8k16(float (&sum)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
#define ROME_FAST_MMA(type)                                                           \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<Key, __nv_bfloat16>) {
    ROME_FAST_MMA("bf16");
  } else {
    static_assert(std::is_same_v<Key, __half>);
    ROME_FAST_MMA("f16");
  }
#undef ROME_FAST_MMA
}

// sum += a b for a 16x8 a and an 8x8 b, both of TF32 in 32 bits.
__device__ __forceinline__ void multiply_m16n8k8_tf32(float (&sum)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The nearest TF32: 8 bits of exponent, 10 of fraction, in the high bits of a float.
__device__ __forceinline__ uint32_t round_to_tf32(float value) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
  return rounded;
}

__device__ __forceinline__ float tf32_as_float(uint32_t value) {
  float same;
  asm("mov.b32 %0, %1;" : "=f"(same) : "r"(value));
  return same;
}

// ---- sm_90: barriers in shared memory and the tensor copy engine --------------------------------

// An mbarrier: its phase ends when every expected thread has arrived and every expected byte too.
using Barrier = uint64_t;

__device__ __forceinline__ void init_barrier(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Makes what this thread wrote to shared memory, barriers too, visible to the copy engine and to
// wgmma; a barrier between the threads is needed besides.
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives, and makes the phase wait for that many bytes besides.
__device__ __forceinline__ void arrive_expecting(Barrier* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Waits until the phase of that parity has ended. Phases are counted from 0; before the first one
// ends, the one of parity 1 counts as ended.
__device__ __forceinline__ void wait_for_phase(Barrier* barrier, uint32_t parity) {
  uint32_t ended = 0;
  while (!ended) {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.b32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
}

// Copies the box of the map that begins at (row, col) to shared memory; its bytes arrive at the
// barrier. Elements outside the tensor are zeros.
__device__ __forceinline__ void copy_box(void* shared, const CUtensorMap* map, int col, int row,
                                         Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(col), "r"(row)
      : "memory");
}

__device__ __forceinline__ void zero_16_bytes(void* shared) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(shared_address(shared)), "r"(0)
               : "memory");
}

// ---- sm_90a: products of a warpgroup ------------------------------------------------------------
#if defined(ROME_FAST_HAS_WGMMA)

template <int kRegisters>
__device__ __forceinline__ void give_registers_back() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#define ROME_FAST_4(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define ROME_FAST_16(x, i) \
  ROME_FAST_4(x, i), ROME_FAST_4(x, i + 4), ROME_FAST_4(x, i + 8), ROME_FAST_4(x, i + 12)
#define ROME_FAST_128(x)                                                             \
  ROME_FAST_16(x, 0), ROME_FAST_16(x, 16), ROME_FAST_16(x, 32), ROME_FAST_16(x, 48), \
      ROME_FAST_16(x, 64), ROME_FAST_16(x, 80), ROME_FAST_16(x, 96), ROME_FAST_16(x, 112)

// Before the first product, and before one whose sum's registers the threads have touched.
__device__ __forceinline__ void fence_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// All products of this warpgroup are done, but for those of its kPending latest commits. The sum is
// named so that the compiler does not move its registers past the wait.
template <int kPending>
__device__ __forceinline__ void wait_for_products(float (&sum)[128]) {
  asm volatile("wgmma.wait_group.sync.aligned %128;"
               : ROME_FAST_128(sum)
               : "n"(kPending)
               : "memory");
}

// sum = a b (+ sum if accumulate), for a 64x16 a and a 16x256 b of Key, which is BFloat16 or Half.
// Descriptors name operands in shared memory, both with consecutive rows of a and columns of b in
// consecutive addresses (MN-major). Thread t holds of row 16 (t / 32) + t % 32 / 4 (and of the one
// 8 below it) columns 8 j + 2 (t % 4) and the next, in sum[4 j] and sum[4 j + 1] (and the next
// two).
template <class Key>
__device__ __forceinline__ void multiply_m64n256k16(float (&sum)[128], uint64_t a, uint64_t b,
                                                    bool accumulate) {
#define ROME_FAST_WGMMA(type)                                                                      \
  asm volatile(                                                                                    \
      "{\n"                                                                                        \
      ".reg .pred accumulate;\n"                                                                   \
      "setp.ne.b32 accumulate, %130, 0;\n"                                                         \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                 \
      " {"                                                                                         \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                     \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "           \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "           \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "           \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
      "%111, "                                                                                     \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
      "%127}, "                                                                                    \
      "%128, %129, accumulate, 1, 1, 1, 1;\n"                                                      \
      "}"                                                                                          \
      : ROME_FAST_128(sum)                                                                         \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate))                                          \
      : "memory")
  if constexpr (std::is_same_v<Key, __nv_bfloat16>) {
    ROME_FAST_WGMMA("bf16");
  } else {
    static_assert(std::is_same_v<Key, __half>);
    ROME_FAST_WGMMA("f16");
  }
#undef ROME_FAST_WGMMA
}

#undef ROME_FAST_4
#undef ROME_FAST_16
#undef ROME_FAST_128
#endif

}  // namespace rome_fast
