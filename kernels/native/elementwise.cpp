// RMSNorm, rotary positions and the gated product of an MLP, forward and backward.
//
// Each reads its operands once and writes its results once. Arithmetic is float32; where a bfloat16
// base rounds in between, so do the forwards here. A row's bits depend on that row alone: its
// columns always fall into the same lanes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "functions.h"
#include "vectors.h"

namespace {

typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

// --- elements as a vector of floats; `count` of them, zeros after

inline vec load(const float* in, int64_t count) {
  if (count >= LANES) return *vector(in);
  vec out = {};
  std::memcpy(&out, in, count * sizeof(float));
  return out;
}
inline vec load(const uint16_t* in, int64_t count) {
  uint32_t wide[LANES] = {};
  for (int64_t i = 0; i < LANES; i++)
    if (count >= LANES || i < count) wide[i] = (uint32_t)in[i] << 16;
  vec out;
  std::memcpy(&out, wide, sizeof out);
  return out;
}

// Bits of the nearest bfloat16, in the low half. Here x comes of arithmetic on bfloat16: a NaN's low
// half is empty, so that the addition stays within the number, and a NaN one.
inline words rounded(vec x) {
  words bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}
inline void store(vec x, float* out, int64_t count) {
  if (count >= LANES) *vector(out) = x;
  else std::memcpy(out, &x, count * sizeof(float));
}
inline void store(vec x, uint16_t* out, int64_t count) {
  const halves bits = __builtin_convertvector(rounded(x), halves);
  if (count >= LANES) *(halves*)out = bits;
  else std::memcpy(out, &bits, count * sizeof(uint16_t));
}

// As if it had been written to memory in between.
inline vec as_stored(vec x, const float*) { return x; }
inline vec as_stored(vec x, const uint16_t*) {
  const words bits = rounded(x) << 16;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// f(column, elements there) over a row. The count is a constant but at its end, and f is inlined
// twice: with one loop for both SwiGLU took 1.3 times as long.
template <class F>
inline void over(int64_t width, F f) {
  int64_t c = 0;
  for (; c + LANES <= width; c += LANES) f(c, (int64_t)LANES);
  if (c < width) f(c, width - c);
}

// --- RMSNorm: y = x / sqrt(mean of x² + eps) · w

struct Norm {
  int64_t rows, width;                      // X and Y: contiguous [rows, width]
  double eps;
  int64_t plus_one;                         // the factor is 1 + w instead of w
  int64_t rounds_first;                     // x / sqrt(..) is rounded before it meets the factor
};

template <class T>
std::vector<float> factors(const Norm& norm, const T* weight) {
  std::vector<float> out(padded(norm.width), 0.0f);
  for (int64_t c = 0; c < norm.width; c++)
    out[c] = norm.plus_one ? 1.0f + widen(weight[c]) : widen(weight[c]);
  return out;
}

// Σ of f(column, elements there) in four sums, so that an addition need not wait for the one before.
template <class F>
inline float sum_over(int64_t width, F f) {
  vec sums[4] = {};
  int64_t c = 0;
  for (; c + 4 * LANES <= width; c += 4 * LANES)
    for (int i = 0; i < 4; i++) sums[i] += f(c + i * LANES, LANES);
  for (; c < width; c += LANES) sums[0] += f(c, width - c);
  return total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void rms_norm(const Norm& norm, const void* x, const void* weight, void* y, float* scales) {
  const std::vector<float> factor = factors(norm, (const T*)weight);
#pragma omp parallel for
  for (int64_t row = 0; row < norm.rows; row++) {
    const T* in = (const T*)x + row * norm.width;
    T* out = (T*)y + row * norm.width;
    const float squares = sum_over(norm.width, [&](int64_t c, int64_t count) {
      const vec v = load(in + c, count);
      return v * v;
    });
    const float scale = 1.0f / std::sqrt(squares / norm.width + (float)norm.eps);
    scales[row] = scale;
    over(norm.width, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      vec v = load(in + c, count) * scale;
      if (norm.rounds_first) v = as_stored(v, in);
      store(v * *vector(&factor[c]), out + c, count);
    });
  }
}

// dX = s · g - s³ · x · mean of (g · x), where g = dY · w and s = 1 / sqrt(..)
template <class T>
void rms_norm_backward(const Norm& norm, const void* x, const void* weight, const float* scales,
                       const void* dy, void* dx) {
  const std::vector<float> factor = factors(norm, (const T*)weight);
#pragma omp parallel for
  for (int64_t row = 0; row < norm.rows; row++) {
    const T *in = (const T*)x + row * norm.width, *from = (const T*)dy + row * norm.width;
    T* out = (T*)dx + row * norm.width;
    const float product = sum_over(norm.width, [&](int64_t c, int64_t count) {
      return load(from + c, count) * *vector(&factor[c]) * load(in + c, count);
    });
    const float scale = scales[row];
    const float pull = scale * scale * (product / norm.width);
    over(norm.width, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const vec g = load(from + c, count) * *vector(&factor[c]);
      store((g - load(in + c, count) * pull) * scale, out + c, count);
    });
  }
}

// --- rotary positions: y = x · cos + (-second half, first half of x) · sin, where cos and sin are
// contiguous [rows, turned]

struct Rotation {
  int64_t rows, width, turned;              // of a head's width so many elements are turned
  int64_t backward;                         // the transposed map
};

// [heads, rows, width] by strides; the elements of a row are contiguous.
struct Turned {
  const void* in;
  void* out;
  int64_t heads, in_head, in_row, out_head, out_row;
};

template <class T, class C>
inline void turn(const T* in, T* out, const C* cos, const C* sin, int64_t half, bool backward) {
  // Products are rounded as the tensor that they are in: bfloat16 where cos is.
  over(half, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
    const vec x = load(in + c, count), z = load(in + half + c, count);
    vec first, second;                      // what crosses from the other half
    if (backward) {
      first = z * load(sin + half + c, count);
      second = -(x * load(sin + c, count));
    } else {
      first = -(z * load(sin + c, count));
      second = x * load(sin + half + c, count);
    }
    const vec stay = as_stored(x * load(cos + c, count), cos);
    const vec keep = as_stored(z * load(cos + half + c, count), cos);
    store(stay + as_stored(first, cos), out + c, count);
    store(keep + as_stored(second, cos), out + half + c, count);
  });
}

template <class T, class C>
void rotary(const Rotation& how, const C* cos, const C* sin, const Turned* tensors,
            int64_t count) {
#pragma omp parallel for
  for (int64_t row = 0; row < how.rows; row++)
    for (const Turned* t = tensors; t < tensors + count; t++)
      for (int64_t head = 0; head < t->heads; head++) {
        const T* in = (const T*)t->in + head * t->in_head + row * t->in_row;
        T* out = (T*)t->out + head * t->out_head + row * t->out_row;
        turn(in, out, cos + row * how.turned, sin + row * how.turned, how.turned / 2,
             how.backward != 0);
        std::copy(in + how.turned, in + how.width, out + how.turned);
      }
}

// --- gated product: y = act(gate) · up, where act(x) = x · sigmoid(p(x)): of SiLU p(x) = x, of
// GELU in its tanh form p(x) = 2 √(2/π) (x + .044715 x³), since 1 + tanh(z) = 2 sigmoid(2z)

struct Gated {
  int64_t rows, width;
  int64_t gate, up;                         // strides of their rows; Y's and dY's are contiguous
  int64_t dgate, dup;                       // of the gradients' rows
  int64_t gelu;
};

struct Sigmoid {
  vec low, high;                            // 1 / (1 + exp(-x)), and 1 less that
};

// Within 4 units in the last place; NaN stays NaN.
inline Sigmoid sigmoid(vec x) {
  vec y = -x;                               // exp(y) is finite and not 0 between these
  y = y > 88.0f ? splat(88.0f) : y;
  y = y < -86.0f ? splat(-86.0f) : y;
  const vec e = exponential(y);
  const vec low = 1.0f / (1.0f + e);
  return {low, low * e};
}

constexpr float SLOPE = 1.5957691216f, CUBIC = 0.044715f;

inline Sigmoid squeezed(vec x, bool gelu) {
  return sigmoid(gelu ? x * (1.0f + CUBIC * x * x) * SLOPE : x);
}

template <class T>
void gated(const Gated& how, const void* gate, const void* up, void* y) {
#pragma omp parallel for
  for (int64_t row = 0; row < how.rows; row++) {
    const T *g = (const T*)gate + row * how.gate, *u = (const T*)up + row * how.up;
    T* out = (T*)y + row * how.width;
    over(how.width, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const vec x = load(g + c, count);
      const vec active = as_stored(x * squeezed(x, how.gelu).low, g);
      store(active * load(u + c, count), out + c, count);
    });
  }
}

// dgate = dY · up · (s + x · s (1 - s) p'(x)) with s = sigmoid(p(x)), and dup = dY · act(gate)
template <class T>
void gated_backward(const Gated& how, const void* gate, const void* up, const void* dy,
                    void* dgate, void* dup) {
#pragma omp parallel for
  for (int64_t row = 0; row < how.rows; row++) {
    const T *g = (const T*)gate + row * how.gate, *u = (const T*)up + row * how.up;
    const T* from = (const T*)dy + row * how.width;
    T *to_gate = (T*)dgate + row * how.dgate, *to_up = (T*)dup + row * how.dup;
    over(how.width, [&](int64_t c, int64_t count) __attribute__((always_inline)) {
      const vec x = load(g + c, count), d = load(from + c, count);
      const Sigmoid s = squeezed(x, how.gelu);
      const vec active = x * s.low;
      vec slope = active * s.high;
      if (how.gelu) slope = slope * ((1.0f + 3 * CUBIC * x * x) * SLOPE);
      store(d * load(u + c, count) * (s.low + slope), to_gate + c, count);
      store(d * as_stored(active, g), to_up + c, count);
    });
  }
}

}  // namespace

extern "C" {

// dtype: 0 = float32, 1 = bfloat16, of all tensors that are not float32 by their type.
void lorafusion_rms_norm(int dtype, const Norm* norm, const void* x, const void* weight, void* y,
                         float* scales) {
  (dtype ? rms_norm<uint16_t> : rms_norm<float>)(*norm, x, weight, y, scales);
}
void lorafusion_rms_norm_backward(int dtype, const Norm* norm, const void* x, const void* weight,
                                  const float* scales, const void* dy, void* dx) {
  (dtype ? rms_norm_backward<uint16_t> : rms_norm_backward<float>)(*norm, x, weight, scales, dy,
                                                                   dx);
}

// dtype: of the tensors; narrow: whether cos and sin are bfloat16 too, else they are float32.
void lorafusion_rotary(int dtype, int narrow, const Rotation* how, const void* cos,
                       const void* sin, const Turned* tensors, int64_t count) {
  const float *wide_cos = (const float*)cos, *wide_sin = (const float*)sin;
  if (!dtype)
    rotary<float>(*how, wide_cos, wide_sin, tensors, count);
  else if (!narrow)
    rotary<uint16_t>(*how, wide_cos, wide_sin, tensors, count);
  else
    rotary<uint16_t>(*how, (const uint16_t*)cos, (const uint16_t*)sin, tensors, count);
}

void lorafusion_gated(int dtype, const Gated* how, const void* gate, const void* up, void* y) {
  (dtype ? gated<uint16_t> : gated<float>)(*how, gate, up, y);
}
void lorafusion_gated_backward(int dtype, const Gated* how, const void* gate, const void* up,
                               const void* dy, void* dgate, void* dup) {
  (dtype ? gated_backward<uint16_t> : gated_backward<float>)(*how, gate, up, dy, dgate, dup);
}
}
