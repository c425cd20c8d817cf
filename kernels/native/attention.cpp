// Causal attention of each sample of a packed microbatch over itself, forward and backward.
//
// One task is a sample and a KV head: its keys and values are turned into floats once, for all the
// query heads that share them. Eight query rows at a time see their keys; scores are float32 and
// are made again in the backward from the logarithm of each row's sum (Dao 2023, arXiv:2307.08691).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "functions.h"
#include "vectors.h"

namespace {

constexpr int ROWS = 8;
constexpr float MASKED = -1e30f;

struct Shape {
  int64_t heads, kv_heads, width;           // width: of a head
  int64_t samples;
  const int64_t* starts;                    // samples + 1 rows
  double scaling;
  int64_t window;                           // a row sees itself and window - 1 rows before it
};

// [heads, rows, width] by strides; the elements of a row are contiguous.
struct Heads {
  void* data;
  int64_t head, row;
};

struct Task {
  int64_t sample, kv_head, rows;
};

template <class T>
T* at(const Heads& heads, int64_t head, int64_t row) {
  return (T*)heads.data + head * heads.head + row * heads.row;
}

// The largest tasks first, so that the threads end together.
std::vector<Task> tasks(const Shape& shape) {
  std::vector<Task> out;
  for (int64_t s = 0; s < shape.samples; s++)
    for (int64_t h = 0; h < shape.kv_heads; h++)
      if (shape.starts[s + 1] > shape.starts[s])
        out.push_back({s, h, shape.starts[s + 1] - shape.starts[s]});
  std::stable_sort(out.begin(), out.end(), [](auto& a, auto& b) { return a.rows > b.rows; });
  return out;
}

// Rows of one head as floats: [rows, padded(width)], or transposed [width, padded(rows)].
template <class T>
void unpack(const Heads& x, int64_t head, int64_t first, int64_t rows, int64_t width,
            bool transpose, std::vector<float>& out) {
  const int64_t stride = padded(transpose ? rows : width);
  out.assign((transpose ? width : rows) * stride, 0.0f);
  for (int64_t t = 0; t < rows; t++) {
    const T* in = at<const T>(x, head, first + t);
    for (int64_t d = 0; d < width; d++)
      out[transpose ? d * stride + t : t * stride + d] = widen(in[d]);
  }
}

// Eight rows of one head as floats, zeros after the last; scaled.
template <class T>
void unpack_block(const Heads& x, int64_t head, int64_t first, int rows, int64_t width,
                  float scale, float* out) {
  const int64_t stride = padded(width);
  std::fill(out, out + ROWS * stride, 0.0f);
  for (int t = 0; t < rows; t++) {
    const T* in = at<const T>(x, head, first + t);
    for (int64_t d = 0; d < width; d++) out[t * stride + d] = widen(in[d]) * scale;
  }
}

template <class T>
void pack_block(const float* in, int rows, int64_t width, const Heads& x, int64_t head,
                int64_t first) {
  for (int t = 0; t < rows; t++) {
    T* out = at<T>(x, head, first + t);
    for (int64_t d = 0; d < width; d++) narrow(in[t * padded(width) + d], out[d]);
  }
}

// out[8, columns first..last] = a[8, depth] · b[depth, .]; first is a multiple of LANES
inline void product(const float* a, int64_t a_stride, int64_t depth, const float* b,
                    int64_t b_stride, int64_t first, int64_t last, float* out,
                    int64_t out_stride) {
  for (int64_t c = first; c < last; c += LANES) {
    vec sum[ROWS] = {};
    for (int64_t d = 0; d < depth; d++) {
      const vec other = *vector(b + d * b_stride + c);
      for (int t = 0; t < ROWS; t++) sum[t] += splat(a[t * a_stride + d]) * other;
    }
    for (int t = 0; t < ROWS; t++) *vector(out + t * out_stride + c) = sum[t];
  }
}

// out[columns first..last, width] += aᵀ[., 8] · b[8, width]
inline void outer(const float* a, int64_t a_stride, int64_t first, int64_t last, const float* b,
                  int64_t width, float* out) {
  for (int64_t d = 0; d < width; d += LANES) {
    vec rows[ROWS];
    for (int t = 0; t < ROWS; t++) rows[t] = *vector(b + t * width + d);
    for (int64_t c = first; c < last; c++) {
      vec sum = *vector(out + c * width + d);
      for (int t = 0; t < ROWS; t++) sum += splat(a[t * a_stride + c]) * rows[t];
      *vector(out + c * width + d) = sum;
    }
  }
}

// The columns that any of the rows top..top+rows sees, the first rounded down to LANES.
struct Seen {
  int64_t first, last;
  Seen(int64_t top, int rows, int64_t window)
      : first(std::max<int64_t>(0, top - window + 1) / LANES * LANES), last(top + rows) {}
};

inline void mask(float* scores, int64_t stride, int64_t top, const Seen& seen, int64_t window) {
  for (int t = 0; t < ROWS; t++) {
    float* row = scores + t * stride;
    for (int64_t c = seen.first; c <= top + t - window; c++) row[c] = MASKED;
    for (int64_t c = top + t + 1; c < padded(seen.last); c++) row[c] = MASKED;
  }
}

template <class T>
void forward(const Shape& shape, const Heads& q, const Heads& k, const Heads& v, const Heads& out,
             float* log_sums) {
  const std::vector<Task> work = tasks(shape);
  const int64_t width = shape.width, wide = padded(width), total = shape.starts[shape.samples];
  const int64_t group = shape.heads / shape.kv_heads;
#pragma omp parallel
  {
    std::vector<float> keys, values, scores, query(ROWS * wide), result(ROWS * wide);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) {
      const int64_t start = shape.starts[work[i].sample], rows = work[i].rows;
      const int64_t stride = padded(rows);
      unpack<T>(k, work[i].kv_head, start, rows, width, true, keys);
      unpack<T>(v, work[i].kv_head, start, rows, width, false, values);
      scores.resize(ROWS * stride);
      for (int64_t h = work[i].kv_head * group; h < (work[i].kv_head + 1) * group; h++)
        for (int64_t top = 0; top < rows; top += ROWS) {
          const int height = (int)std::min<int64_t>(ROWS, rows - top);
          const Seen seen(top, height, shape.window);
          unpack_block<T>(q, h, start + top, height, width, (float)shape.scaling, query.data());
          product(query.data(), wide, width, keys.data(), stride, seen.first, seen.last,
                  scores.data(), stride);
          mask(scores.data(), stride, top, seen, shape.window);
          float sums[ROWS];
          for (int t = 0; t < ROWS; t++) {
            float* row = scores.data() + t * stride;
            vec most = splat(MASKED), sum = {};
            for (int64_t c = seen.first; c < seen.last; c += LANES) {
              const vec s = *vector(row + c);
              most = s > most ? s : most;
            }
            float peak = most[0];
            for (int j = 1; j < LANES; j++) peak = std::max(peak, (float)most[j]);
            for (int64_t c = seen.first; c < seen.last; c += LANES) {
              const vec p = exponential(*vector(row + c) - peak);
              *vector(row + c) = p;
              sum += p;
            }
            sums[t] = 0;
            for (int j = 0; j < LANES; j++) sums[t] += sum[j];
            if (t < height) log_sums[h * total + start + top + t] = peak + std::log(sums[t]);
          }
          product(scores.data() + seen.first, stride, seen.last - seen.first,
                  values.data() + seen.first * wide, wide, 0, wide, result.data(), wide);
          for (int t = 0; t < height; t++)
            for (int64_t d = 0; d < wide; d++) result[t * wide + d] /= sums[t];
          pack_block<T>(result.data(), height, width, out, h, start + top);
        }
    }
  }
}

template <class T>
void backward(const Shape& shape, const Heads& q, const Heads& k, const Heads& v,
              const Heads& out, const Heads& dout, const float* log_sums, const Heads& dq,
              const Heads& dk, const Heads& dv) {
  const std::vector<Task> work = tasks(shape);
  const int64_t width = shape.width, wide = padded(width), total = shape.starts[shape.samples];
  const int64_t group = shape.heads / shape.kv_heads;
#pragma omp parallel
  {
    std::vector<float> keys, keys_T, values_T, grad_keys, grad_values, p, ds;
    std::vector<float> query(ROWS * wide), answer(ROWS * wide), dy(ROWS * wide);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) {
      const int64_t start = shape.starts[work[i].sample], rows = work[i].rows;
      const int64_t stride = padded(rows), kv = work[i].kv_head;
      unpack<T>(k, kv, start, rows, width, false, keys);
      unpack<T>(k, kv, start, rows, width, true, keys_T);
      unpack<T>(v, kv, start, rows, width, true, values_T);
      grad_keys.assign(rows * wide, 0.0f);
      grad_values.assign(rows * wide, 0.0f);
      p.resize(ROWS * stride);
      ds.resize(ROWS * stride);
      for (int64_t h = kv * group; h < (kv + 1) * group; h++)
        for (int64_t top = 0; top < rows; top += ROWS) {
          const int height = (int)std::min<int64_t>(ROWS, rows - top);
          const Seen seen(top, height, shape.window);
          unpack_block<T>(q, h, start + top, height, width, (float)shape.scaling, query.data());
          unpack_block<T>(out, h, start + top, height, width, 1.0f, answer.data());
          unpack_block<T>(dout, h, start + top, height, width, 1.0f, dy.data());
          product(query.data(), wide, width, keys_T.data(), stride, seen.first, seen.last,
                  p.data(), stride);
          mask(p.data(), stride, top, seen, shape.window);
          product(dy.data(), wide, width, values_T.data(), stride, seen.first, seen.last,
                  ds.data(), stride);
          for (int t = 0; t < ROWS; t++) {
            float delta = 0;
            for (int64_t d = 0; d < width; d++) delta += dy[t * wide + d] * answer[t * wide + d];
            const float log_sum = t < height ? log_sums[h * total + start + top + t] : 0.0f;
            for (int64_t c = seen.first; c < seen.last; c += LANES) {
              float* here = &p[t * stride + c];
              // Rows after the last have no dY and no query: whatever p is, they add nothing.
              *vector(here) = t < height ? exponential(*vector(here) - log_sum) : vec{};
              *vector(&ds[t * stride + c]) = *vector(here) * (*vector(&ds[t * stride + c]) - delta);
            }
          }
          outer(p.data(), stride, seen.first, seen.last, dy.data(), wide, grad_values.data());
          outer(ds.data(), stride, seen.first, seen.last, query.data(), wide, grad_keys.data());
          product(ds.data() + seen.first, stride, seen.last - seen.first,
                  keys.data() + seen.first * wide, wide, 0, wide, answer.data(), wide);
          for (float& x : answer) x *= (float)shape.scaling;
          pack_block<T>(answer.data(), height, width, dq, h, start + top);
        }
      for (int64_t top = 0; top < rows; top += ROWS) {
        const int height = (int)std::min<int64_t>(ROWS, rows - top);
        pack_block<T>(&grad_keys[top * wide], height, width, dk, kv, start + top);
        pack_block<T>(&grad_values[top * wide], height, width, dv, kv, start + top);
      }
    }
  }
}

}  // namespace

extern "C" {

// dtype: 0 = float32, 1 = bfloat16. log_sums: [heads, rows].
void lorafusion_attention(int dtype, const Shape* shape, const Heads* q, const Heads* k,
                          const Heads* v, const Heads* out, float* log_sums) {
  (dtype ? forward<uint16_t> : forward<float>)(*shape, *q, *k, *v, *out, log_sums);
}
void lorafusion_attention_backward(int dtype, const Shape* shape, const Heads* q, const Heads* k,
                                   const Heads* v, const Heads* out, const Heads* dout,
                                   const float* log_sums, const Heads* dq, const Heads* dk,
                                   const Heads* dv) {
  (dtype ? backward<uint16_t> : backward<float>)(*shape, *q, *k, *v, *out, *dout, log_sums, *dq,
                                                 *dk, *dv);
}
}
