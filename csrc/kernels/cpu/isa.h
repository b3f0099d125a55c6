// Which instruction set the kernels run: the best this CPU has, or ROME_FAST_SIMD if it is lower.
#pragma once

// Compilers that know the instructions.
#if defined(__x86_64__) && (defined(__clang__) || __GNUC__ >= 10)
#define ROME_FAST_HAS_BF16_DOT
#endif

namespace rome_fast {

// kAvx512Bf16 is kAvx512 with dot products of bfloat16 pairs; only second_moment knows it.
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// Decided on the first call; ROME_FAST_SIMD=baseline|avx2|avx512|avx512_bf16 exists so that every
// variant can be tested on one machine.
Isa active_isa();

const char* isa_name(Isa isa);

}  // namespace rome_fast

// Calls `function` as compiled for the active instruction set (see foreach_isa.h).
#if defined(__x86_64__)
#define ROME_FAST_CALL_ISA(function, ...)     \
  switch (::rome_fast::active_isa()) {        \
    case ::rome_fast::Isa::kAvx512Bf16:       \
    case ::rome_fast::Isa::kAvx512:           \
      return avx512::function(__VA_ARGS__);   \
    case ::rome_fast::Isa::kAvx2:             \
      return avx2::function(__VA_ARGS__);     \
    default:                                  \
      return baseline::function(__VA_ARGS__); \
  }
#else
#define ROME_FAST_CALL_ISA(function, ...) return baseline::function(__VA_ARGS__)
#endif
