// Causal attention of each sample of a packed microbatch over itself, forward and backward.
//
// One task is a sample and a KV head: its keys and values are turned into floats once, for all the
// query heads that share them. A block of query rows goes from block to block of the keys with the
// running peak and sum of its softmax; in the backward scores are made again from the logarithm of
// each row's sum (Dao 2023, arXiv:2307.08691).

#include <cmath>

#include "attention_blocks.h"
#include "attention_tasks.h"
#include "functions.h"

namespace {

constexpr float MASKED = -1e30f;

// [heads, rows, width] by strides; the elements of a row are contiguous.
struct Heads {
  void* data;
  int64_t head, row;
};

template <class T>
T* at(const Heads& heads, int64_t head, int64_t row) {
  return (T*)heads.data + head * heads.head + row * heads.row;
}

// Rows of one head as floats, [rows, whole panels], times a factor. Columns past the width are 0.
template <class T>
void unpack(const Heads& x, int64_t head, int64_t first, int64_t rows, int64_t width, float factor,
            std::vector<float>& out) {
  const int64_t wide = rounded(width, PANEL);
  out.assign(rounded(rows, STRIP) * wide, 0.0f);
  for (int64_t t = 0; t < rows; t++) {
    const T* in = at<T>(x, head, first + t);
    for (int64_t d = 0; d < width; d++) out[t * wide + d] = widen(in[d]) * factor;
  }
}

// Rows of one head as floats in panels of [width, PANEL rows]. Rows past the last are 0.
template <class T>
void unpack_panels(const Heads& x, int64_t head, int64_t first, int64_t rows, int64_t width,
                   std::vector<float>& out) {
  out.assign(rounded(rows, PANEL) * width, 0.0f);
  for (int64_t c = 0; c < rows; c++) {
    const T* in = at<T>(x, head, first + c);
    float* panel = out.data() + c / PANEL * PANEL * width + c % PANEL;
    for (int64_t d = 0; d < width; d++) panel[d * PANEL] = widen(in[d]);
  }
}

template <class T>
void pack(const float* in, int64_t rows, int64_t width, const Heads& x, int64_t head,
          int64_t first) {
  for (int64_t t = 0; t < rows; t++) {
    T* out = at<T>(x, head, first + t);
    for (int64_t d = 0; d < width; d++) narrow(in[t * rounded(width, PANEL) + d], out[d]);
  }
}

// The running softmax of a block of query rows; a sink is a score that has no value.
struct Softmax {
  float peak[ROWS], sum[ROWS];

  Softmax(const float* sink) {
    std::fill(peak, peak + ROWS, sink ? *sink : MASKED);
    std::fill(sum, sum + ROWS, sink ? 1.0f : 0.0f);
  }

  // Scores become their share of the sum so far; what was made before, [ROWS, wide], is scaled.
  void take(const Block& at, float softcap, float* scores, float* result, int64_t wide) {
    for (int64_t t = 0; t < at.height; t++) {
      const Range panels = at.panels(t / STRIP);
      float* row = scores + t * COLUMNS;
      if (softcap > 0)
        for (int64_t c = panels.first; c < panels.last; c += LANES)
          *vector(row + c) = softcap * hyperbolic_tangent(*vector(row + c) / softcap);
      hide(at, t, MASKED, row);
      vec most = splat(peak[t]), added = {};
      for (int64_t c = panels.first; c < panels.last; c += LANES)
        most = pick(*vector(row + c) > most, *vector(row + c), most);
      const float before = peak[t];
      peak[t] = largest(most);
      for (int64_t c = panels.first; c < panels.last; c += LANES) {
        *vector(row + c) = exponential(*vector(row + c) - peak[t]);
        added += *vector(row + c);
      }
      const float factor = before == peak[t] ? 1.0f : std::exp(before - peak[t]);
      sum[t] = sum[t] * factor + total(added);
      if (factor != 1.0f)
        for (int64_t d = 0; d < wide; d += LANES) *vector(result + t * wide + d) *= factor;
    }
  }
};

struct Input {
  const Shape& shape;
  const Heads &q, &k, &v, &out;
  float* log_sums;                          // [heads, rows]

  const float* sink(int64_t head) const { return shape.sinks ? shape.sinks + head : nullptr; }
  float* log_sum(int64_t head, int64_t row) const {
    return log_sums + head * shape.starts[shape.samples] + row;
  }
};

template <class T>
void forward(const Input& in) {
  const Shape& shape = in.shape;
  const int64_t width = shape.width, value_width = shape.value_width;
  const int64_t wide = rounded(width, PANEL), value_wide = rounded(value_width, PANEL);
  const std::vector<Task> work = tasks(shape);
#pragma omp parallel
  {
    std::vector<float> keys, values, query, scores(ROWS * COLUMNS), result;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) {
      const Task& task = work[i];
      unpack_panels<T>(in.k, task.kv_head, task.start, task.rows, width, keys);
      unpack<T>(in.v, task.kv_head, task.start, task.rows, value_width, 1.0f, values);
      for (int64_t h = task.first_head; h < task.last_head; h++)
        for (int64_t top = 0; top < task.rows; top += ROWS) {
          const int64_t height = std::min(ROWS, task.rows - top);
          unpack<T>(in.q, h, task.start + top, height, width, (float)shape.scaling, query);
          result.assign(ROWS * value_wide, 0.0f);
          Softmax softmax(in.sink(h));
          for (int64_t left = Block::begin(top, shape.window); left < top + height;
               left += COLUMNS) {
            const Block block(top, left, task.rows, shape.window);
            score(block, query.data(), wide, keys.data(), width, scores.data());
            softmax.take(block, (float)shape.softcap, scores.data(), result.data(), value_wide);
            weigh(block, scores.data(), values.data(), value_wide, result.data());
          }
          for (int64_t t = 0; t < height; t++) {
            *in.log_sum(h, task.start + top + t) = softmax.peak[t] + std::log(softmax.sum[t]);
            for (int64_t d = 0; d < value_wide; d += LANES)
              *vector(&result[t * value_wide + d]) /= softmax.sum[t];
          }
          pack<T>(result.data(), height, value_width, in.out, h, task.start + top);
        }
    }
  }
}

// Of a block: scores become P, and their gradients through the values those through the keys.
inline void soften(const Block& at, float softcap, const float* log_sums, const float* deltas,
                   float* p, float* ds) {
  for (int64_t t = 0; t < at.height; t++) {
    const Range panels = at.panels(t / STRIP);
    float *score = p + t * COLUMNS, *slope = ds + t * COLUMNS;
    for (int64_t c = panels.first; c < panels.last; c += LANES) {
      vec s = *vector(score + c), steep = splat(1.0f);
      if (softcap > 0) {
        const vec bent = hyperbolic_tangent(s / softcap);
        s = softcap * bent;
        steep -= bent * bent;
      }
      s = exponential(s - log_sums[t]);
      *vector(score + c) = s;
      *vector(slope + c) = s * (*vector(slope + c) - deltas[t]) * steep;
    }
    for (float* row : {score, slope}) {
      hide(at, t, 0.0f, row);
      std::fill(row, row + panels.first, 0.0f);  // a key's strip may reach over the window's edge
      if (panels.empty()) std::fill(row, row + COLUMNS, 0.0f);
    }
  }
}

// What a thread of the backward holds.
template <class T>
class Backward {
 public:
  Backward(const Input& in, const Heads& dout, const Heads& dq)
      : in(in), shape(in.shape), dout(dout), dq(dq), wide(rounded(shape.width, PANEL)),
        value_wide(rounded(shape.value_width, PANEL)), p(ROWS * COLUMNS), ds(ROWS * COLUMNS) {}

  void begin(const Task& now) {
    task = now;
    unpack<T>(in.k, task.kv_head, task.start, task.rows, shape.width, 1.0f, keys);
    unpack_panels<T>(in.k, task.kv_head, task.start, task.rows, shape.width, key_panels);
    unpack_panels<T>(in.v, task.kv_head, task.start, task.rows, shape.value_width, value_panels);
  }

  // dQ of a head, and its share of dK [rows, wide] and dV [rows, value_wide].
  void head(int64_t h, std::vector<float>& grad_keys, std::vector<float>& grad_values) {
    grad_keys.assign(rounded(task.rows, STRIP) * wide, 0.0f);
    grad_values.assign(rounded(task.rows, STRIP) * value_wide, 0.0f);
    for (int64_t top = 0; top < task.rows; top += ROWS) {
      const int64_t height = std::min(ROWS, task.rows - top), row = task.start + top;
      unpack<T>(in.q, h, row, height, shape.width, (float)shape.scaling, query);
      unpack<T>(dout, h, row, height, shape.value_width, 1.0f, dy);
      unpack<T>(in.out, h, row, height, shape.value_width, 1.0f, answer);
      float deltas[ROWS];
      for (int64_t t = 0; t < height; t++) {
        vec delta = {};
        for (int64_t d = 0; d < value_wide; d += LANES)
          delta += *vector(&dy[t * value_wide + d]) * *vector(&answer[t * value_wide + d]);
        deltas[t] = total(delta);
      }
      result.assign(ROWS * wide, 0.0f);
      for (int64_t left = Block::begin(top, shape.window); left < top + height; left += COLUMNS) {
        const Block block(top, left, task.rows, shape.window);
        score(block, query.data(), wide, key_panels.data(), shape.width, p.data());
        score(block, dy.data(), value_wide, value_panels.data(), shape.value_width, ds.data());
        soften(block, (float)shape.softcap, in.log_sum(h, row), deltas, p.data(), ds.data());
        collect(block, p.data(), dy.data(), value_wide, grad_values.data());
        collect(block, ds.data(), query.data(), wide, grad_keys.data());
        weigh(block, ds.data(), keys.data(), wide, result.data());
      }
      for (float& x : result) x *= (float)shape.scaling;
      pack<T>(result.data(), height, shape.width, dq, h, row);
    }
  }

 private:
  const Input& in;
  const Shape& shape;
  const Heads &dout, &dq;
  const int64_t wide, value_wide;
  Task task;
  std::vector<float> keys, key_panels, value_panels, query, dy, answer, p, ds, result;
};

inline void add(const std::vector<float>& more, std::vector<float>& sum) {
  for (size_t i = 0; i < sum.size(); i++) sum[i] += more[i];
}

template <class T>
void backward(const Input& in, const Heads& dout, const Heads& dq, const Heads& dk,
              const Heads& dv) {
  const Shape& shape = in.shape;
  const std::vector<Task> work = tasks(shape);
  const std::vector<Whole> whole = unsplit(work);
  const auto store = [&](const Task& task, const std::vector<float>& keys,
                         const std::vector<float>& values) {
    pack<T>(keys.data(), task.rows, shape.width, dk, task.kv_head, task.start);
    pack<T>(values.data(), task.rows, shape.value_width, dv, task.kv_head, task.start);
  };
  // Of split tasks; of others the thread's own, in the same order of heads: the same bits.
  std::vector<std::vector<float>> keys_of(work.size()), values_of(work.size());
#pragma omp parallel
  {
    Backward<T> run(in, dout, dq);
    std::vector<float> keys, values, more_keys, more_values;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < work.size(); i++) {
      const Task& task = work[i];
      run.begin(task);
      if (task.split) {
        run.head(task.first_head, keys_of[i], values_of[i]);
        continue;
      }
      run.head(task.first_head, keys, values);
      for (int64_t h = task.first_head + 1; h < task.last_head; h++) {
        run.head(h, more_keys, more_values);
        add(more_keys, keys);
        add(more_values, values);
      }
      store(task, keys, values);
    }
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < whole.size(); i++) {
      const size_t first = whole[i].first_task, last = whole[i].last_task;
      for (size_t j = first + 1; j < last; j++) {
        add(keys_of[j], keys_of[first]);
        add(values_of[j], values_of[first]);
      }
      store(work[first], keys_of[first], values_of[first]);
    }
  }
}

}  // namespace

extern "C" {

// dtype: 0 = float32, 1 = bfloat16. log_sums: [heads, rows].
void lorafusion_attention(int dtype, const Shape* shape, const Heads* q, const Heads* k,
                          const Heads* v, const Heads* out, float* log_sums) {
  (dtype ? forward<uint16_t> : forward<float>)({*shape, *q, *k, *v, *out, log_sums});
}
void lorafusion_attention_backward(int dtype, const Shape* shape, const Heads* q, const Heads* k,
                                   const Heads* v, const Heads* out, const Heads* dout,
                                   float* log_sums, const Heads* dq, const Heads* dk,
                                   const Heads* dv) {
  const Input in{*shape, *q, *k, *v, *out, log_sums};
  (dtype ? backward<uint16_t> : backward<float>)(in, *dout, *dq, *dk, *dv);
}
}
