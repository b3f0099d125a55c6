// 16-bit floats as plain bits, with conversions that round to nearest even as torch does.
//
// Written on integers and selects so that loops over them vectorise for every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#define ROME_FAST_INLINE inline __attribute__((always_inline))

namespace rome_fast {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

ROME_FAST_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

ROME_FAST_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

ROME_FAST_INLINE double widen(double x) { return x; }
ROME_FAST_INLINE float widen(float x) { return x; }
ROME_FAST_INLINE float widen(BFloat16 x) { return bits_to_float(uint32_t{x.bits} << 16); }

ROME_FAST_INLINE float widen(Half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // 0.5 + m * 2^-24 is exact, so the difference is the subnormal m * 2^-24.
  const uint32_t subnormal = float_to_bits(bits_to_float(0x3f000000u | magnitude) - 0.5f);
  const uint32_t normal = (magnitude << 13) + (112u << 23);  // exponent bias 15 -> 127
  const uint32_t special = (magnitude << 13) | 0x7f800000u;
  uint32_t bits = magnitude < 0x0400u ? subnormal : normal;
  bits = magnitude < 0x7c00u ? bits : special;
  return bits_to_float(sign | bits);
}

template <class T>
ROME_FAST_INLINE T narrow(double x) {
  return static_cast<T>(x);
}

template <class T>
ROME_FAST_INLINE T narrow(float x) {
  return static_cast<T>(x);
}

template <>
ROME_FAST_INLINE BFloat16 narrow<BFloat16>(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(nan ? 0x7fc0u : rounded)};
}

template <>
ROME_FAST_INLINE Half narrow<Half>(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Adding 0.5 lets the FPU round at 2^-24, the step of the subnormals.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;  // 2^-14
  half = magnitude < 0x47800000u ? half : special;               // 2^16
  return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | half)};
}

}  // namespace rome_fast
