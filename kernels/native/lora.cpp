// The LoRA products of a packed microbatch on a CPU: three loops, called for all jobs at once.
//
// A plain C ABI over raw pointers: no torch header is needed to build it, so it fits every torch.
// Shapes: X is [T, K], Y is [T, N], S and dS are float32 [T, R]; row t belongs to one job at most.
// Accumulation is float32 in an order that depends on the job's own rows alone.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

// A product keeps its sums in registers: of so many rows by one vector, or by two, which need half
// the loads. Six by two fill AVX2's sixteen registers.
constexpr int SINGLE = LANES == 16 ? 16 : 8, PAIR = LANES == 16 ? 12 : 6;
constexpr int BLOCK = 48;     // rows, or columns, of a task: a multiple of both
constexpr int CHUNK = 512;    // columns dropped at once, at most
constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull;

struct Job {
  int64_t start, stop;        // its rows
  int64_t rank;
  double scale;
  int64_t threshold;          // of dropout, in 1/65536
  const float* a;             // [rank, K]
  const float* b;             // [N, rank]
  float* gradient;            // dA [rank, K] or dB [N, rank]; null where none is wanted
};

struct Keys {                 // what the dropout of a row depends on, beside the module
  const int64_t *prefix, *sample, *position;
  uint64_t module;
};

using RowKeys = std::vector<uint64_t>;

struct Block {
  const Job* job;
  int64_t first, last;        // rows, or columns
};

// --- dropout: see dropout.py

inline uint64_t finalise(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

inline uint64_t row_key_of(const Keys& keys, int64_t row) {
  uint64_t key = finalise(((uint64_t)keys.prefix[row] ^ keys.module) + GOLDEN);
  key = finalise((key ^ (uint64_t)keys.sample[row]) + GOLDEN);
  return finalise((key ^ (uint64_t)keys.position[row]) + GOLDEN);
}

// One key per row of the microbatch, for all the columns of a call; empty where nothing drops.
RowKeys row_keys(const Job* jobs, int64_t count, const Keys* keys) {
  int64_t last = 0;
  for (const Job* job = jobs; job < jobs + count; job++)
    if (keys && job->threshold) last = std::max(last, job->stop);
  RowKeys out(last);
  for (const Job* job = jobs; last && job < jobs + count; job++) {
    if (!job->threshold) continue;
#pragma omp parallel for
    for (int64_t row = job->start; row < job->stop; row++) out[row] = row_key_of(*keys, row);
  }
  return out;
}

// As many 64-bit hashes as fit a vector, and the 16-bit lanes of them.
constexpr int LANES16 = 2 * LANES;
typedef uint64_t hashes __attribute__((vector_size(4 * LANES)));
typedef int16_t lanes16 __attribute__((vector_size(4 * LANES)));
typedef int16_t half_lanes16 __attribute__((vector_size(2 * LANES)));

// out = D(in) for columns first..first+count of a row; `first` is a multiple of 4. Whole vectors are
// read and written. Without a branch: whether an element is kept is random.
inline void drop(const float* in, float* out, uint64_t key, int64_t first, int count,
                 int64_t threshold) {
  const vec kept = splat(65536.0f / (float)(65536 - threshold));
  // Lanes are unsigned: with their highest bit turned over they compare as signed ones do.
  const int16_t least = (int16_t)(uint16_t)(threshold ^ 0x8000), sign = INT16_MIN;
  hashes z;
  for (int g = 0; g < LANES / 2; g++) z[g] = key + (uint64_t)(first / 4 + g + 1) * GOLDEN;
  for (int c = 0; c < count; c += LANES16, z += (uint64_t)(LANES / 2) * GOLDEN) {
    hashes found = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;  // finalise(z)
    found = (found ^ (found >> 27)) * 0x94D049BB133111EBull;
    found ^= found >> 31;
    const lanes16 keep = ((lanes16)found ^ sign) >= least;  // little-endian: low lane first
    half_lanes16 halves[2];
    std::memcpy(halves, &keep, sizeof halves);
    for (int h = 0; h < 2; h++) {
      const ints mask = __builtin_convertvector(halves[h], ints);
      const int64_t at = c + h * LANES;
      *vector(out + at) = (vec)((ints)(*vector(in + at) * kept) & mask);
    }
  }
}

template <class T>
struct Matrix {               // contiguous rows
  T* data;
  int64_t stride, columns;
  T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

// A job's elements as floats, dropped where it drops.
template <class T>
inline void load(Matrix<T> x, int64_t row, int64_t first, int count, const Job& job,
                 const RowKeys& keys, float* out) {
  const T* in = x.at(row, first);
  const bool drops = !keys.empty() && job.threshold;
  int done = 0;  // whole vectors of floats are dropped as they are read
  if constexpr (std::is_same_v<T, const float>)
    if (drops) {
      done = count / LANES16 * LANES16;
      drop(in, out, keys[row], first, done, job.threshold);
    }
  for (int c = done; c < count; c++) out[c] = widen(in[c]);
  if (drops && done < count)
    drop(out + done, out + done, keys[row], first + done, count - done, job.threshold);
}

// As it is where floats can be read as they are; else loaded into `room`.
template <class T>
inline const float* loaded(Matrix<T> x, int64_t row, int64_t first, int count, const Job& job,
                           const RowKeys& keys, float* room) {
  if constexpr (std::is_same_v<T, const float>)
    if (keys.empty() || !job.threshold) return x.at(row, first);
  load(x, row, first, count, job, keys, room);
  return room;
}

std::vector<Block> blocks(const Job* jobs, int64_t count) {
  std::vector<Block> out;
  for (const Job* job = jobs; job < jobs + count; job++)
    for (int64_t row = job->start; row < job->stop; row += BLOCK)
      out.push_back({job, row, std::min(row + BLOCK, job->stop)});
  return out;
}

// A job's factor as F [rank, columns], whichever way round it is stored.
struct Factor {
  const float* data;
  int64_t rank_step, column_step;
  Factor(const Job& job, int64_t columns, bool of_b)
      : data(of_b ? job.b : job.a), rank_step(of_b ? 1 : columns),
        column_step(of_b ? job.rank : 1) {}
  float at(int64_t r, int64_t c) const { return data[r * rank_step + c * column_step]; }
};

using Packed = std::vector<std::vector<float>>;

// Of every job [columns, padded(rank)]; zeros after its rank.
Packed by_column(const Job* jobs, int64_t count, int64_t columns, bool of_b) {
  Packed out(count);
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; i++) {
    const Factor f(jobs[i], columns, of_b);
    const int64_t rank = jobs[i].rank, width = padded(rank);
    out[i].assign(columns * width, 0.0f);
    for (int64_t c = 0; c < columns; c++)
      for (int64_t r = 0; r < rank; r++) out[i][c * width + r] = f.at(r, c);
  }
  return out;
}

// Of every job [columns / PANEL, rank, PANEL]: what a product reads lies side by side.
constexpr int PANEL = 2 * LANES;
Packed by_panel(const Job* jobs, int64_t count, int64_t columns, bool of_b) {
  Packed out(count);
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; i++) {
    const Factor f(jobs[i], columns, of_b);
    const int64_t rank = jobs[i].rank;
    out[i].assign((columns + PANEL - 1) / PANEL * PANEL * rank, 0.0f);
    for (int64_t c = 0; c < columns; c++)
      for (int64_t r = 0; r < rank; r++)
        out[i][(c / PANEL * rank + r) * PANEL + c % PANEL] = f.at(r, c);
  }
  return out;
}

// sum[t] += over c < count of rows[t][c · step] · factor[c, ..], for M rows and V vectors. Each
// sum grows in the order of its terms, whatever M and V are.
template <int V, int M>
inline void add_products(vec (&sum)[M][V], const float* const* rows, int64_t step, int64_t count,
                         const float* factor, int64_t width) {
  for (int64_t c = 0; c < count; c++) {
    vec f[V];
    for (int v = 0; v < V; v++) f[v] = *vector(factor + c * width + v * LANES);
    for (int t = 0; t < M; t++) {
      const vec x = splat(rows[t][c * step]);
      for (int v = 0; v < V; v++) sum[t][v] += x * f[v];
    }
  }
}

template <int V, int M>
inline void multiply(const float* const* rows, int64_t step, int64_t count, const float* factor,
                     int64_t width, float* sums) {
  vec sum[M][V];
  for (int t = 0; t < M; t++)
    for (int v = 0; v < V; v++) sum[t][v] = *vector(sums + t * width + v * LANES);
  add_products<V, M>(sum, rows, step, count, factor, width);
  for (int t = 0; t < M; t++)
    for (int v = 0; v < V; v++) *vector(sums + t * width + v * LANES) = sum[t][v];
}

// The same for `count` of BLOCK rows and all of `width`, a multiple of LANES. The rows behind them
// must be there, what comes of them is not read.
inline void multiply_all(const float* const* rows, int count, int64_t step, int64_t depth,
                         const float* factor, int64_t width, float* sums) {
  int64_t r = 0;
  for (; r + 2 * LANES <= width; r += 2 * LANES)
    for (int t = 0; t < count; t += PAIR)
      multiply<2, PAIR>(rows + t, step, depth, factor + r, width, sums + t * width + r);
  for (; r < width; r += LANES)
    for (int t = 0; t < count; t += SINGLE)
      multiply<1, SINGLE>(rows + t, step, depth, factor + r, width, sums + t * width + r);
}

// --- out[t, r] = scale · sum over c of x[t, c] · factor[c, r]: S from A, dS from B

template <class T>
void to_ranks(Matrix<T> x, const Job* jobs, int64_t count, const Keys* keys, bool of_b,
              float* out, int64_t R) {
  constexpr int DEPTH = 128;  // columns at once: rows and factor of rank 16 fit a 32 KB L1 cache
  const Packed factors = by_column(jobs, count, x.columns, of_b);
  const RowKeys row_key = row_keys(jobs, count, keys);
  const std::vector<Block> work = blocks(jobs, count);
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < work.size(); i++) {
    const Job& job = *work[i].job;
    const int64_t width = padded(job.rank), top = work[i].first;
    const int rows = (int)(work[i].last - top);
    const float* factor = factors[work[i].job - jobs].data();
    std::vector<float> sums(BLOCK * width, 0.0f);
    float room[BLOCK][DEPTH];
    const float* values[BLOCK];
    for (int64_t first = 0; first < x.columns; first += DEPTH) {
      const int depth = (int)std::min<int64_t>(DEPTH, x.columns - first);
      for (int t = 0; t < rows; t++)
        values[t] = loaded(x, top + t, first, depth, job, row_key, room[t]);
      std::fill(values + rows, values + BLOCK, values[0]);
      multiply_all(values, rows, 1, depth, factor + first * width, width, sums.data());
    }
    const float scale = of_b ? (float)job.scale : 1.0f;
    for (int t = 0; t < rows; t++)
      for (int64_t r = 0; r < job.rank; r++)
        out[(top + t) * R + r] = sums[t * width + r] * scale;
  }
}

// --- y[t, c] += scale · D(sum over r of s[t, r] · factor[r, c]): Y from Bᵀ, dX from A

using Sums = vec[PAIR][2];

inline void store(const Sums& sum, float* out, int64_t stride) {
  for (int t = 0; t < PAIR; t++)
    for (int v = 0; v < 2; v++) *vector(out + t * stride + v * LANES) = sum[t][v];
}

inline void add(const Sums& sum, float scale, float* out, int64_t stride) {
  for (int t = 0; t < PAIR; t++)
    for (int v = 0; v < 2; v++) {
      vec* there = vector(out + t * stride + v * LANES);
      *there = *there + sum[t][v] * splat(scale);
    }
}

template <class T>
void from_ranks(Matrix<T> y, const Job* jobs, int64_t count, const Keys* keys, bool of_b,
                const float* s, int64_t R) {
  const Packed factors = by_panel(jobs, count, y.columns, of_b);
  const RowKeys row_key = row_keys(jobs, count, keys);
  const std::vector<Block> work = blocks(jobs, count);
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < work.size(); i++) {
    const Job& job = *work[i].job;
    const bool drops = keys && job.threshold;
    const float* factor = factors[work[i].job - jobs].data();
    const float scale = of_b ? (float)job.scale : 1.0f;
    for (int64_t top = work[i].first; top < work[i].last; top += PAIR) {
      const int rows = (int)std::min<int64_t>(PAIR, work[i].last - top);
      const float* ranks[PAIR];
      for (int t = 0; t < PAIR; t++) ranks[t] = s + (top + std::min(t, rows - 1)) * R;
      for (int64_t first = 0; first < y.columns; first += CHUNK) {
        const int columns = (int)std::min<int64_t>(CHUNK, y.columns - first);
        // Whole panels of floats are added as they are made; the rest goes through `values`.
        const bool as_made = std::is_same_v<T, float> && !drops && rows == PAIR;
        const int done = as_made ? columns / PANEL * PANEL : 0;
        float values[PAIR][CHUNK];
        for (int c = 0; c < columns; c += PANEL) {
          Sums sum = {};
          add_products<2, PAIR>(sum, ranks, 1, job.rank, factor + (first + c) * job.rank, PANEL);
          if constexpr (std::is_same_v<T, float>)
            if (c < done) {
              add(sum, scale, y.at(top, first + c), y.stride);
              continue;
            }
          store(sum, &values[0][c], CHUNK);
        }
        for (int t = 0; done < columns && t < rows; t++) {
          if (drops) drop(values[t], values[t], row_key[top + t], first, columns, job.threshold);
          T* out = y.at(top + t, first);
          for (int c = done; c < columns; c++)
            narrow(widen(out[c]) + values[t][c] * scale, out[c]);
        }
      }
    }
  }
}

// --- gradient[c, r] = scale · sum over t of x[t, c] · s[t, r]: dB from dY and S, dAᵀ from D(X), dS

template <class T>
void over_rows(Matrix<T> x, const Job* jobs, int64_t count, const Keys* keys, bool of_b,
               const float* s, int64_t R) {
  constexpr int COLUMNS = 4 * BLOCK, DEPTH = 32;  // a narrower strip of X is slow to read
  const RowKeys row_key = row_keys(jobs, count, keys);
  std::vector<Block> work;
  for (const Job* job = jobs; job < jobs + count; job++)
    for (int64_t c = 0; job->gradient && c < x.columns; c += COLUMNS)
      work.push_back({job, c, std::min<int64_t>(c + COLUMNS, x.columns)});
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < work.size(); i++) {
    const Job& job = *work[i].job;
    const int64_t first = work[i].first, width = padded(job.rank);
    const int columns = (int)(work[i].last - first);
    std::vector<float> sums(COLUMNS * width, 0.0f), ranks(DEPTH * width, 0.0f);
    float values[DEPTH][COLUMNS] = {};
    const float* of_column[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) of_column[c] = &values[0][c];
    for (int64_t top = job.start; top < job.stop; top += DEPTH) {
      const int depth = (int)std::min<int64_t>(DEPTH, job.stop - top);
      for (int t = 0; t < depth; t++) {
        load(x, top + t, first, columns, job, row_key, values[t]);
        std::memcpy(&ranks[t * width], s + (top + t) * R, job.rank * sizeof(float));
      }
      multiply_all(of_column, columns, COLUMNS, depth, ranks.data(), width, sums.data());
    }
    const float scale = of_b ? (float)job.scale : 1.0f;
    for (int c = 0; c < columns; c++)
      for (int64_t r = 0; r < job.rank; r++) {
        float* out = of_b ? &job.gradient[(first + c) * job.rank + r]
                          : &job.gradient[r * x.columns + first + c];
        *out = sums[c * width + r] * scale;
      }
  }
}

template <class T>
struct Ops {
  static void down(const void* x, int64_t stride, int64_t columns, const Job* jobs, int64_t count,
                   const Keys* keys, float* s, int64_t R) {
    to_ranks(Matrix<const T>{(const T*)x, stride, columns}, jobs, count, keys, false, s, R);
  }
  static void up(void* y, int64_t stride, int64_t columns, const Job* jobs, int64_t count,
                 const float* s, int64_t R) {
    from_ranks(Matrix<T>{(T*)y, stride, columns}, jobs, count, nullptr, true, s, R);
  }
  static void grad_down(const void* dy, int64_t stride, int64_t columns, const Job* jobs,
                        int64_t count, const float* s, float* ds, int64_t R) {
    const Matrix<const T> in{(const T*)dy, stride, columns};
    to_ranks(in, jobs, count, nullptr, true, ds, R);
    over_rows(in, jobs, count, nullptr, true, s, R);
  }
  static void grad_input(void* dx, int64_t stride, int64_t columns, const Job* jobs, int64_t count,
                         const Keys* keys, const float* ds, int64_t R) {
    from_ranks(Matrix<T>{(T*)dx, stride, columns}, jobs, count, keys, false, ds, R);
  }
  static void grad_a(const void* x, int64_t stride, int64_t columns, const Job* jobs,
                     int64_t count, const Keys* keys, const float* ds, int64_t R) {
    over_rows(Matrix<const T>{(const T*)x, stride, columns}, jobs, count, keys, false, ds, R);
  }
};

}  // namespace

// dtype: 0 = float32, 1 = bfloat16
#define CALL(op, ...) (dtype ? Ops<uint16_t>::op(__VA_ARGS__) : Ops<float>::op(__VA_ARGS__))

extern "C" {

// The widest of the builds v4, v3, generic that this processor runs: 4, 3 or 0.
int lorafusion_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 4;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 3;
#endif
  return 0;
}

void lorafusion_down(int dtype, const void* x, int64_t stride, int64_t columns, const Job* jobs,
                     int64_t count, const Keys* keys, float* s, int64_t R) {
  CALL(down, x, stride, columns, jobs, count, keys, s, R);
}
void lorafusion_up(int dtype, void* y, int64_t stride, int64_t columns, const Job* jobs,
                   int64_t count, const float* s, int64_t R) {
  CALL(up, y, stride, columns, jobs, count, s, R);
}
void lorafusion_grad_down(int dtype, const void* dy, int64_t stride, int64_t columns,
                          const Job* jobs, int64_t count, const float* s, float* ds, int64_t R) {
  CALL(grad_down, dy, stride, columns, jobs, count, s, ds, R);
}
void lorafusion_grad_input(int dtype, void* dx, int64_t stride, int64_t columns, const Job* jobs,
                           int64_t count, const Keys* keys, const float* ds, int64_t R) {
  CALL(grad_input, dx, stride, columns, jobs, count, keys, ds, R);
}
void lorafusion_grad_a(int dtype, const void* x, int64_t stride, int64_t columns, const Job* jobs,
                       int64_t count, const Keys* keys, const float* ds, int64_t R) {
  CALL(grad_a, x, stride, columns, jobs, count, keys, ds, R);
}
}
