// exp and tanh of vectors of floats: Cephes' polynomials (Moshier), within 2 units in the last place.

#pragma once

#include "vectors.h"

namespace {

inline vec pick(ints where, vec yes, vec no) { return where ? yes : no; }

// 0 below -87; NaN stays NaN.
inline vec exponential(vec x) {
  const vec magic = splat(12582912.0f);     // 1.5 * 2^23: adding it rounds to a whole number
  const vec whole = (x * 1.44269504f + magic) - magic;
  const vec f = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  vec p = splat(1.9875691500e-4f);
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const vec safe = pick(x > -87.0f, whole, vec{});
  ints exponent = (__builtin_convertvector(safe, ints) + 127) << 23;
  vec power;
  std::memcpy(&power, &exponent, sizeof power);
  return pick(x == x, pick(x > -87.0f, p * power, vec{}), x);
}

// A polynomial near 0, where 1 - 2 / (e^2x + 1) would cancel.
inline vec hyperbolic_tangent(vec x) {
  const vec square = x * x;
  vec p = splat(-5.70498872745e-3f);
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const vec near = p * square * x + x;
  const vec size = pick(x < 0.0f, -x, x), most = splat(10.0f);  // tanh(10) rounds to 1
  const vec far = 1.0f - 2.0f / (exponential(2.0f * pick(size > most, most, size)) + 1.0f);
  return pick(size < 0.625f, near, pick(x < 0.0f, -far, far));
}

inline float largest(vec x) {
  float most = x[0];
  for (int j = 1; j < LANES; j++) most = x[j] > most ? (float)x[j] : most;
  return most;
}

inline float total(vec x) {
  float sum = 0;
  for (int j = 0; j < LANES; j++) sum += x[j];
  return sum;
}

}  // namespace
