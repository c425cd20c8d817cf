// A block of query rows against a block of keys: which of the scores are seen, and the products.
//
// Products are made in strips of six rows by two vectors, whose sums fill twelve of AVX2's sixteen
// registers. Keys lie in panels, [depth, two vectors] each, because columns of a long sample, a power
// of two apart, would fall into one set of the cache.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

constexpr int STRIP = 6;
constexpr int PANEL = 2 * LANES;
// Whole strips and panels; the blocks of one head of width 64 to 128 fit a cache of 512 KB.
constexpr int64_t ROWS = 48, COLUMNS = 96;
static_assert(ROWS % STRIP == 0 && COLUMNS % STRIP == 0 && COLUMNS % PANEL == 0);

inline int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// out[6, PANEL] = a · b, or added to it; a is [6, depth], turned: [depth, 6].
template <bool turned>
inline void multiply(const float* a, int64_t a_stride, const float* b, int64_t b_stride,
                     int64_t depth, float* out, int64_t out_stride, bool add) {
  vec sum[STRIP][2] = {};
  if (add)
    for (int t = 0; t < STRIP; t++)
      for (int j = 0; j < 2; j++) sum[t][j] = *vector(out + t * out_stride + j * LANES);
  for (int64_t k = 0; k < depth; k++) {
    const vec left = *vector(b + k * b_stride), right = *vector(b + k * b_stride + LANES);
#pragma GCC unroll 6
    for (int t = 0; t < STRIP; t++) {
      const vec x = splat(turned ? a[k * a_stride + t] : a[t * a_stride + k]);
      sum[t][0] += x * left;
      sum[t][1] += x * right;
    }
  }
  for (int t = 0; t < STRIP; t++)
    for (int j = 0; j < 2; j++) *vector(out + t * out_stride + j * LANES) = sum[t][j];
}

struct Range {
  int64_t first, last;
  bool empty() const { return first >= last; }
};

// Query rows top..top+height against keys left..left+columns of a sample; numbers within them.
struct Block {
  int64_t top, height, left, columns;
  int64_t rows, window;                     // of the sample; a row sees window - 1 rows before it

  Block(int64_t top, int64_t left, int64_t rows, int64_t window)
      : top(top), height(std::min(ROWS, rows - top)), left(left),
        columns(std::min(COLUMNS, rows - left)), rows(rows), window(window) {}

  int64_t strips() const { return rounded(height, STRIP) / STRIP; }

  // The first block of keys that the rows from top on see any of.
  static int64_t begin(int64_t top, int64_t window) {
    return std::max<int64_t>(0, top - window + 1) / COLUMNS * COLUMNS;
  }
  // Keys that a query row sees.
  Range seen(int64_t row) const {
    return {std::max<int64_t>(0, top + row - window + 1 - left),
            std::min(columns, top + row + 1 - left)};
  }
  // Keys that any row of a strip sees, in whole panels.
  Range panels(int64_t strip) const {
    const Range most{seen(strip * STRIP).first, seen(strip * STRIP + STRIP - 1).last};
    if (most.empty()) return {0, 0};
    return {most.first / PANEL * PANEL, rounded(most.last, PANEL)};
  }
};

// scores[ROWS, COLUMNS] = a[ROWS, wide] · keys, where a row sees them.
inline void score(const Block& at, const float* a, int64_t wide, const float* keys, int64_t width,
                  float* scores) {
  for (int64_t c = 0; c < at.columns; c += PANEL)
    for (int64_t r = 0; r < at.strips(); r++) {
      const Range panels = at.panels(r);
      if (c >= panels.first && c < panels.last)
        multiply<false>(a + r * STRIP * wide, wide, keys + (at.left + c) * width, PANEL, width,
                        scores + r * STRIP * COLUMNS + c, COLUMNS, false);
    }
}

// out[ROWS, wide] += p[ROWS, COLUMNS] · b[rows of the sample, wide]
inline void weigh(const Block& at, const float* p, const float* b, int64_t wide, float* out) {
  for (int64_t d = 0; d < wide; d += PANEL)
    for (int64_t r = 0; r < at.strips(); r++) {
      const Range panels = at.panels(r);
      const int64_t last = std::min(panels.last, at.columns);
      if (!panels.empty())
        multiply<false>(p + r * STRIP * COLUMNS + panels.first, COLUMNS,
                        b + (at.left + panels.first) * wide + d, wide, last - panels.first,
                        out + r * STRIP * wide + d, wide, true);
    }
}

// out[rows of the sample, wide] += pᵀ[., ROWS] · b[ROWS, wide]
inline void collect(const Block& at, const float* p, const float* b, int64_t wide, float* out) {
  for (int64_t d = 0; d < wide; d += PANEL)
    for (int64_t c = 0; c < at.columns; c += STRIP) {
      const int64_t first = std::max<int64_t>(0, at.left + c - at.top);
      const int64_t last = std::min(at.height, at.left + c + STRIP - 1 - at.top + at.window);
      if (first < last)
        multiply<true>(p + first * COLUMNS + c, COLUMNS, b + first * wide + d, wide, last - first,
                       out + (at.left + c) * wide + d, wide, true);
    }
}

// In the panels of a row's strip, what the row itself does not see.
inline void hide(const Block& at, int64_t row, float value, float* scores) {
  const Range panels = at.panels(row / STRIP), seen = at.seen(row);
  const int64_t first = std::clamp(seen.first, panels.first, panels.last);
  const int64_t last = std::clamp(seen.last, first, panels.last);
  std::fill(scores + panels.first, scores + first, value);
  std::fill(scores + last, scores + panels.last, value);
}

}  // namespace
