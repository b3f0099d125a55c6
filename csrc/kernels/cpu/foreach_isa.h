// Includes ROME_FAST_BODY once per instruction set, each time in a namespace of its name.
//
// Explicit inclusion rather than target_clones: GCC splits wide vectors to the default width
// before it makes the clones. Every function of a body carries ROME_FAST_TARGET.
// kRows x (3 vectors) accumulators, 3 vectors of b and a broadcast must fit the register file.

#include "kernels/cpu/half.h"
#include "kernels/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define ROME_FAST_ISA baseline
#define ROME_FAST_TARGET
#define ROME_FAST_VECTOR_BYTES 16
#if defined(__aarch64__)
#define ROME_FAST_TILE_ROWS 6  // 32 registers
#else
#define ROME_FAST_TILE_ROWS 2
#endif
#include "kernels/cpu/vec.h"
#include ROME_FAST_BODY
#undef ROME_FAST_ISA
#undef ROME_FAST_TARGET
#undef ROME_FAST_VECTOR_BYTES
#undef ROME_FAST_TILE_ROWS

#if defined(__x86_64__)

#define ROME_FAST_ISA avx2
#define ROME_FAST_TARGET __attribute__((target("avx2,fma")))
#define ROME_FAST_VECTOR_BYTES 32
#define ROME_FAST_TILE_ROWS 4  // 16 registers
#include "kernels/cpu/vec.h"
#include ROME_FAST_BODY
#undef ROME_FAST_ISA
#undef ROME_FAST_TARGET
#undef ROME_FAST_VECTOR_BYTES
#undef ROME_FAST_TILE_ROWS

#define ROME_FAST_ISA avx512
#define ROME_FAST_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")))
#define ROME_FAST_VECTOR_BYTES 64
#define ROME_FAST_TILE_ROWS 8  // 32 registers
#include "kernels/cpu/vec.h"
#include ROME_FAST_BODY
#undef ROME_FAST_ISA
#undef ROME_FAST_TARGET

// The same for a body with a way of its own for bfloat16.
#if defined(ROME_FAST_HAS_BF16_DOT) && defined(ROME_FAST_BODY_HAS_BF16_DOT)
#define ROME_FAST_ISA avx512_bf16
#define ROME_FAST_TARGET \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")))
#define ROME_FAST_BF16_DOT 1
#include "kernels/cpu/vec.h"
#include ROME_FAST_BODY
#undef ROME_FAST_ISA
#undef ROME_FAST_TARGET
#undef ROME_FAST_BF16_DOT
#endif

#undef ROME_FAST_VECTOR_BYTES
#undef ROME_FAST_TILE_ROWS

#endif
