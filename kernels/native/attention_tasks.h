// What the threads of attention take: a sample with a KV head, or with one query head of its group.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

struct Shape {
  int64_t heads, kv_heads, width, value_width;  // width: of a query's and a key's head
  int64_t samples;
  const int64_t* starts;                    // samples + 1 rows
  double scaling;
  int64_t window;                           // a row sees itself and window - 1 rows before it
  double softcap;                           // scores z become c · tanh(z / c); 0: they stay
  const float* sinks;                       // [heads], or null
};

struct Task {
  int64_t start, rows, kv_head, first_head, last_head;
  bool split;                               // one of several that share a KV head's gradients
};

// The largest first, so that the threads end together. Where one would take a thread for more than
// half its share of the time, such as one long sample with three KV heads on two threads, its query
// heads are apart.
inline std::vector<Task> tasks(const Shape& shape) {
  std::vector<Task> out;
  const int64_t group = shape.heads / shape.kv_heads;
  double all = 0;
  std::vector<int64_t> order;
  for (int64_t s = 0; s < shape.samples; s++) {
    const double rows = (double)(shape.starts[s + 1] - shape.starts[s]);
    all += rows * rows * (double)shape.kv_heads;
    if (rows > 0) order.push_back(s);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return shape.starts[a + 1] - shape.starts[a] > shape.starts[b + 1] - shape.starts[b];
  });
  for (int64_t s : order) {
    const int64_t start = shape.starts[s], rows = shape.starts[s + 1] - start;
    const bool split =
        group > 1 && 2.0 * omp_get_max_threads() * (double)rows * (double)rows > all;
    for (int64_t kv = 0; kv < shape.kv_heads; kv++)
      for (int64_t h = kv * group; h < (kv + 1) * group; h += split ? 1 : group)
        out.push_back({start, rows, kv, h, h + (split ? 1 : group), split});
  }
  return out;
}

struct Whole {
  size_t first_task, last_task;
};

// The tasks that were split from one, which follow each other.
inline std::vector<Whole> unsplit(const std::vector<Task>& tasks) {
  std::vector<Whole> out;
  for (size_t i = 0; i < tasks.size(); i++) {
    if (!tasks[i].split) continue;
    const bool again = i > 0 && tasks[i - 1].split && tasks[i - 1].start == tasks[i].start &&
                       tasks[i - 1].kv_head == tasks[i].kv_head;
    if (again)
      out.back().last_task = i + 1;
    else
      out.push_back({i, i + 1});
  }
  return out;
}

}  // namespace
