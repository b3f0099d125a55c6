// Constants of e^x (see exp_body.h), the same for every instruction set.
#pragma once

#include <cstdint>

namespace rome_fast {

// x = n ln 2 + r, |r| <= ln 2 / 2. ln 2 comes in two parts, of which n times the first is exact.
// Adding kShift rounds to an integer, which is then in the lowest bits.
template <class T>
struct ExpOf;

template <>
struct ExpOf<float> {
  static constexpr float kLog2E = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f;
  static constexpr float kLn2Low = -2.12194440e-4f;
  static constexpr float kShift = 0x1.8p23f;
  static constexpr float kLeast = -87.0f;  // e^x is subnormal soon below
  static constexpr int kFractionBits = 23;
  static constexpr int kDegree = 7;  // the next term is 5e-9 at most
};

template <>
struct ExpOf<double> {
  static constexpr double kLog2E = 1.4426950408889634;
  static constexpr double kLn2High = 6.93145751953125e-1;
  static constexpr double kLn2Low = 1.42860682030941723212e-6;
  static constexpr double kShift = 0x1.8p52;
  static constexpr double kLeast = -708.0;
  static constexpr int kFractionBits = 52;
  static constexpr int kDegree = 13;  // the next term is 4e-18 at most
};

inline constexpr double kInverseFactorials[] = {
    1.0,
    1.0,
    1.0 / 2,
    1.0 / 6,
    1.0 / 24,
    1.0 / 120,
    1.0 / 720,
    1.0 / 5040,
    1.0 / 40320,
    1.0 / 362880,
    1.0 / 3628800,
    1.0 / 39916800,
    1.0 / 479001600,
    1.0 / 6227020800,
};

}  // namespace rome_fast
