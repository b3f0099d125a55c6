// One vector register of floats or doubles for the instruction set being compiled.
// Included by foreach_isa.h, several times: no include guard.

namespace rome_fast::ROME_FAST_ISA {

typedef float FloatVec __attribute__((vector_size(ROME_FAST_VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(ROME_FAST_VECTOR_BYTES)));
typedef float HalfWidthFloatVec __attribute__((vector_size(ROME_FAST_VECTOR_BYTES / 2)));

template <class T>
struct VecOf;

template <>
struct VecOf<float> {
  using type = FloatVec;
};

template <>
struct VecOf<double> {
  using type = DoubleVec;
};

#if ROME_FAST_BF16_DOT
using Bf16Pair = uint32_t;  // the first in the low half
typedef uint32_t Bf16PairVec __attribute__((vector_size(ROME_FAST_VECTOR_BYTES)));

template <>
struct VecOf<Bf16Pair> {
  using type = Bf16PairVec;
};
#endif

template <class T>
using Vec = typename VecOf<T>::type;

template <class T>
inline constexpr int kLanes = ROME_FAST_VECTOR_BYTES / sizeof(T);

template <class V, class T>
ROME_FAST_TARGET ROME_FAST_INLINE V load(const T* address) {
  V value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

template <class V, class T>
ROME_FAST_TARGET ROME_FAST_INLINE void store(T* address, V value) {
  std::memcpy(address, &value, sizeof value);
}

// kLanes<double> doubles from as many doubles or floats.
ROME_FAST_TARGET ROME_FAST_INLINE DoubleVec load_double(const double* address) {
  return load<DoubleVec>(address);
}

ROME_FAST_TARGET ROME_FAST_INLINE DoubleVec load_double(const float* address) {
  return __builtin_convertvector(load<HalfWidthFloatVec>(address), DoubleVec);
}

// a * b + c, fused where the instruction set can. Spelled out because contraction is off for the
// whole library: what rank_one_update_ writes must not depend on the compiler.
ROME_FAST_TARGET ROME_FAST_INLINE FloatVec mul_add(FloatVec a, FloatVec b, FloatVec c) {
#if ROME_FAST_VECTOR_BYTES == 64
  return (FloatVec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif ROME_FAST_VECTOR_BYTES == 32
  return (FloatVec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (FloatVec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

#if ROME_FAST_BF16_DOT
// c + the dot products of pairs. Rounds to nearest even; subnormals, also of c, count as zero.
ROME_FAST_TARGET ROME_FAST_INLINE FloatVec mul_add(Bf16PairVec a, Bf16PairVec b, FloatVec c) {
  return (FloatVec)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
}
#endif

ROME_FAST_TARGET ROME_FAST_INLINE DoubleVec mul_add(DoubleVec a, DoubleVec b, DoubleVec c) {
#if ROME_FAST_VECTOR_BYTES == 64
  return (DoubleVec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif ROME_FAST_VECTOR_BYTES == 32
  return (DoubleVec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__aarch64__)
  return (DoubleVec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// One lane of the above, so that the tail of a loop rounds as its body does.
ROME_FAST_TARGET ROME_FAST_INLINE double mul_add(double a, double b, double c) {
#if ROME_FAST_VECTOR_BYTES >= 32 || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

ROME_FAST_TARGET ROME_FAST_INLINE double sum_lanes(DoubleVec value) {
  double sum = 0;
  for (int lane = 0; lane < kLanes<double>; ++lane) sum += value[lane];
  return sum;
}

}  // namespace rome_fast::ROME_FAST_ISA
