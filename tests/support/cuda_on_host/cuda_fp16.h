// float16 on the host: rounds to nearest, ties to even, as the card does.
#pragma once

#include <cuda_runtime.h>

struct alignas(2) __half {
  uint16_t bits;
};

struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half x) {
  const int exponent = (x.bits >> 10) & 31, mantissa = x.bits & 0x3ff;
  const float sign = x.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(float(mantissa), -24);
  return sign * std::ldexp(float(mantissa + 1024), exponent - 25);
}

inline __half __float2half_rn(float x) {
  const uint16_t sign = uint16_t((__float_as_uint(x) >> 16) & 0x8000);
  if (x != x) return {uint16_t(0x7fff)};
  const float size = std::fabs(x);
  if (size >= 65520.0f) return {uint16_t(sign | 0x7c00)};  // half a step beyond the largest
  // The spacing of float16 numbers where x lies; 2^-24 below the normal ones.
  const int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  const float steps = std::nearbyint(std::ldexp(size, 10 - exponent));
  // Steps count on into the exponent, as the bits do.
  const int bits = int(steps) + (exponent + 14) * 1024;
  return {uint16_t(sign | bits)};
}

inline __half __float2half(float x) { return __float2half_rn(x); }
