// exp and tanh of vectors of floats.

#pragma once

#include "vectors.h"

namespace {

// exp of each float, within 2 units in the last place; 0 below -87; NaN stays NaN.
inline vec exponential(vec x) {
  const vec magic = splat(12582912.0f);     // 1.5 * 2^23: adding it rounds to a whole number
  const vec whole = (x * 1.44269504f + magic) - magic;
  const vec f = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);          // Cephes' expf
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const vec safe = x > -87.0f ? whole : vec{};
  ints exponent = (__builtin_convertvector(safe, ints) + 127) << 23;
  vec power;
  std::memcpy(&power, &exponent, sizeof power);
  const vec result = x > -87.0f ? p * power : vec{};
  return x == x ? result : x;
}

// tanh of each float: of 0.625 and more within 1e-7, below within 2 units in the last place.
inline vec tangent(vec x) {
  const vec size = x < 0.0f ? -x : x;
  const vec e = exponential(size * -2.0f);
  const vec large = (1.0f - e) / (1.0f + e);
  const vec s = x * x;
  vec p = splat(-5.70498872745e-3f);        // Cephes' tanhf
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const vec small = p * s * x + x;
  return size < 0.625f ? small : x < 0.0f ? -large : large;
}

}  // namespace
