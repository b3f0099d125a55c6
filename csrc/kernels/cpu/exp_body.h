// e^x on one vector register (included by bodies, several times: no include guard).

namespace rome_fast::ROME_FAST_ISA {

typedef uint32_t Bits32Vec __attribute__((vector_size(ROME_FAST_VECTOR_BYTES)));
typedef uint64_t Bits64Vec __attribute__((vector_size(ROME_FAST_VECTOR_BYTES)));

template <class T>
struct BitsOf;

template <>
struct BitsOf<float> {
  using type = Bits32Vec;
};

template <>
struct BitsOf<double> {
  using type = Bits64Vec;
};

// e^x for x <= 0, within 2 ulp; 0 where it would be subnormal, NaN for NaN.
template <class T>
ROME_FAST_TARGET ROME_FAST_INLINE Vec<T> exp_nonpositive(Vec<T> x) {
  using Exp = ExpOf<T>;
  using Bits = typename BitsOf<T>::type;
  const Vec<T> zero = {};
  const Vec<T> shifted = x * Exp::kLog2E + Exp::kShift;
  const Vec<T> n = shifted - Exp::kShift;
  Vec<T> r = mul_add(n, zero - Exp::kLn2High, x);
  r = mul_add(n, zero - Exp::kLn2Low, r);
  Vec<T> y = zero + T(kInverseFactorials[Exp::kDegree]);
  for (int k = Exp::kDegree - 1; k >= 0; --k) y = mul_add(y, r, zero + T(kInverseFactorials[k]));
  const Vec<T> power = (Vec<T>)(((Bits)shifted << Exp::kFractionBits) + (Bits)(zero + T(1)));
  return x < Exp::kLeast ? zero : y * power;
}

}  // namespace rome_fast::ROME_FAST_ISA
