// What stands between the two products of the loss: from products [words, rows] to losses, and in
// place to the gradient.
//
// A row is a lane: its sums run over the words, in blocks of fixed length that threads share out
// and that are then added in order, in double. So a row's bits depend on no other row, and not on
// the number of threads.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "functions.h"
#include "vectors.h"

namespace {

constexpr int64_t BLOCK = 512;  // words of a task
constexpr int WORDS = 8;        // words of which a vector each is held at a time

struct Chunk {
  void* logits;                 // [words, rows], the products W · hidden
  int64_t words, rows, stride;  // stride: elements from word to word, a multiple of 64 bytes
  const float* bias;            // [words], or null
  double scale, softcap;        // softcap 0: none
  const int64_t* targets;       // of each row
  const float* weights;
  float* losses;                // written
};

typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));

inline vec load(const float* p) { return *vector(p); }
inline vec load(const uint16_t* p) {
  const bits wide = __builtin_convertvector(*reinterpret_cast<const halves*>(p), bits) << 16;
  vec out;
  std::memcpy(&out, &wide, sizeof out);
  return out;
}
inline void store(vec x, float* p) { *vector(p) = x; }
inline void store(vec x, uint16_t* p) {  // as narrow
  bits b;
  std::memcpy(&b, &x, sizeof b);
  b = x == x ? (b + 0x7FFF + ((b >> 16) & 1)) >> 16 : (bits{} + 0x7FC0);
  *reinterpret_cast<halves*>(p) = __builtin_convertvector(b, halves);
}

// From a product to its logit; the slope of that.
template <bool CAP>
struct Rule {
  const float* bias;
  float scale, cap, inverse;
  explicit Rule(const Chunk& c)
      : bias(c.bias), scale((float)c.scale), cap((float)c.softcap),
        inverse(CAP ? (float)(c.scale / c.softcap) : 0.0f) {}

  vec logit(vec product, int64_t word, vec& slope) const {
    if (bias) product += bias[word];
    if (!CAP) return product * scale;
    const vec t = hyperbolic_tangent(product * inverse);
    slope = (1.0f - t) * (1.0f + t);
    return t * cap;
  }
};

// Of a row over one block: the largest logit, and Σ exp(logit - largest).
struct Sums {
  int64_t blocks, width;        // width: rows, padded
  std::vector<float> most, total;
  explicit Sums(const Chunk& c)
      : blocks((c.words + BLOCK - 1) / BLOCK), width(padded(c.rows)),
        most(blocks * width, -FLT_MAX), total(blocks * width, 0.0f) {}
};

template <class T, bool CAP>
void add_up(const Chunk& c, const Rule<CAP>& rule, int64_t block, Sums& sums) {
  const T* x = (const T*)c.logits;
  float* most = &sums.most[block * sums.width];
  float* total = &sums.total[block * sums.width];
  const int64_t last = std::min((block + 1) * BLOCK, c.words);
  for (int64_t first = block * BLOCK; first < last; first += WORDS) {
    const int count = (int)std::min<int64_t>(WORDS, last - first);
    for (int64_t row = 0; row < sums.width; row += LANES) {
      vec z[WORDS], slope, sum = {};
      const vec before = *vector(most + row);
      vec now = before;
      for (int i = 0; i < count; i++) {
        z[i] = rule.logit(load(x + (first + i) * c.stride + row), first + i, slope);
        now = z[i] > now ? z[i] : now;
      }
      for (int i = 0; i < count; i++) sum += exponential(z[i] - now);
      *vector(total + row) = *vector(total + row) * exponential(before - now) + sum;
      *vector(most + row) = now;
    }
  }
}

// Of each row: the largest logit, the factor of exp(logit - largest) in the gradient, and the
// gradient of the target's product.
struct Rows {
  std::vector<float> most, factor, target;
  explicit Rows(int64_t width) : most(width), factor(width), target(width) {}
};

template <class T, bool CAP>
void finish(const Chunk& c, const Rule<CAP>& rule, const Sums& sums, int64_t row, Rows& rows) {
  float most = -FLT_MAX;
  for (int64_t b = 0; b < sums.blocks; b++)
    most = std::max(most, sums.most[b * sums.width + row]);
  double total = 0;
  for (int64_t b = 0; b < sums.blocks; b++)
    total += sums.total[b * sums.width + row] *
             std::exp((double)sums.most[b * sums.width + row] - most);
  vec slope = splat(1.0f);
  const int64_t target = c.targets[row];
  const T product = ((const T*)c.logits)[target * c.stride + row];
  const double own = (double)rule.logit(splat(widen(product)), target, slope)[0] - most;
  const double factor = c.weights[row] * c.scale;
  c.losses[row] = (float)(std::log(total) - own);
  rows.most[row] = most;
  rows.factor[row] = (float)(factor / total);
  rows.target[row] = (float)((std::exp(own) / total - 1.0) * factor * slope[0]);
}

template <class T, bool CAP>
void differentiate(const Chunk& c, const Rule<CAP>& rule, int64_t block, const Rows& rows) {
  const int64_t last = std::min((block + 1) * BLOCK, c.words), width = (int64_t)rows.most.size();
  for (int64_t word = block * BLOCK; word < last; word++) {
    T* x = (T*)c.logits + word * c.stride;
    for (int64_t row = 0; row < width; row += LANES) {
      vec slope = splat(1.0f);
      const vec z = rule.logit(load(x + row), word, slope);
      store(exponential(z - *vector(&rows.most[row])) * *vector(&rows.factor[row]) * slope,
            x + row);
    }
  }
}

template <class T, bool CAP>
void run(const Chunk& c, bool gradient) {
  const Rule<CAP> rule(c);
  Sums sums(c);
  Rows rows(sums.width);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < sums.blocks; block++) add_up<T>(c, rule, block, sums);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < c.rows; row++) finish<T>(c, rule, sums, row, rows);
    if (gradient) {
#pragma omp for schedule(static)
      for (int64_t block = 0; block < sums.blocks; block++)
        differentiate<T>(c, rule, block, rows);
#pragma omp for schedule(static)
      for (int64_t row = 0; row < c.rows; row++)
        narrow(rows.target[row], ((T*)c.logits)[c.targets[row] * c.stride + row]);
    }
  }
}

}  // namespace

extern "C" {

// dtype: 0 = float32, 1 = bfloat16. Losses of all rows; with ``gradient`` the products become the
// gradient of Σ weight · loss to themselves.
void lorafusion_cross_entropy(int dtype, const Chunk* chunk, int gradient) {
  auto with = [&](auto cap) {
    constexpr bool CAP = decltype(cap)::value;
    (dtype ? run<uint16_t, CAP> : run<float, CAP>)(*chunk, gradient != 0);
  };
  chunk->softcap ? with(std::true_type{}) : with(std::false_type{});
}
}
