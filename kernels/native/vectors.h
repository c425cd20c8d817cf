// Vectors of floats, and elements that are floats or bfloat16.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

// Floats in a vector, one register each: a wider one is split, and eight sums of two registers do
// not fit AVX2's sixteen. On one Zen 3 core the base with LoRA took 1.63 times the base alone so, now
// 1.15; attention forward and backward 127 ms, now 25.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

// Not `vec{} + f`: compilers keep that addition, since it turns -0 into 0.
#if defined(__AVX512F__)
inline vec splat(float f) { return vec{f, f, f, f, f, f, f, f, f, f, f, f, f, f, f, f}; }
#elif defined(__AVX__)
inline vec splat(float f) { return vec{f, f, f, f, f, f, f, f}; }
#else
inline vec splat(float f) { return vec{f, f, f, f}; }
#endif
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
