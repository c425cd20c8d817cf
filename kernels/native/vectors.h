// Vectors of floats, and elements that are floats or bfloat16.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;     // floats in a vector: 512 bits; narrower machines split it

typedef float vec __attribute__((vector_size(64), aligned(4), may_alias));

// Not `vec{} + f`: compilers keep that addition, since it turns -0 into 0.
inline vec splat(float f) { return vec{f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f}; }
inline vec* vector(float* p) { return reinterpret_cast<vec*>(p); }
inline const vec* vector(const float* p) { return reinterpret_cast<const vec*>(p); }
inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

// An element is a float, or a bfloat16 as its 16 bits.

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
  uint32_t bits = (uint32_t)x << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline void narrow(float f, float& out) { out = f; }
inline void narrow(float f, uint16_t& out) {  // round to nearest even, NaN stays NaN
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  out = f != f ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

}  // namespace
