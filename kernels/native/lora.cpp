// The LoRA products of a packed microbatch on a CPU: three loops, called for all jobs at once.
//
// A plain C ABI over raw pointers: no torch header is needed to build it, so it fits every torch.
// Shapes: X is [T, K], Y is [T, N], S and dS are float32 [T, R]; row t belongs to one job at most.
// Accumulation is float32 in an order that depends on the job's own rows alone.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int ROWS = 8;       // rows of a block: with one vector of ranks, 8 accumulators
constexpr int CHUNK = 512;    // columns converted at once: 8 rows of floats fit a 32 KB L1 cache
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

// Drop columns first..first+count of a row, in place. `first` is a multiple of 4.
inline void drop(float* x, uint64_t key, int64_t first, int count, int64_t threshold) {
  uint64_t z[CHUNK / 4];
  uint16_t lane[CHUNK];
  const float kept = 65536.0f / (float)(65536 - threshold);
  const int groups = (count + 3) / 4;
  for (int g = 0; g < groups; g++) z[g] = finalise(key + (first / 4 + g + 1) * GOLDEN);
  std::memcpy(lane, z, sizeof(uint64_t) * groups);  // little-endian: the low lane comes first
  const uint16_t t = (uint16_t)threshold;
  for (int c = 0; c < count; c++) x[c] = lane[c] >= t ? x[c] * kept : 0.0f;
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
  for (int c = 0; c < count; c++) out[c] = widen(in[c]);
  if (!keys.empty() && job.threshold) drop(out, keys[row], first, count, job.threshold);
}

std::vector<Block> blocks(const Job* jobs, int64_t count, int64_t size) {
  std::vector<Block> out;
  for (const Job* job = jobs; job < jobs + count; job++)
    for (int64_t row = job->start; row < job->stop; row += size)
      out.push_back({job, row, std::min(row + size, job->stop)});
  return out;
}

// [rows, columns] -> [columns, padded(rows)] or, untransposed, [rows, padded(columns)]; zeros after
std::vector<float> pack(const float* in, int64_t rows, int64_t columns, bool transpose) {
  const int64_t width = padded(transpose ? rows : columns);
  std::vector<float> out((transpose ? columns : rows) * width, 0.0f);
  if (transpose) {
    for (int64_t c = 0; c < columns; c++)
      for (int64_t r = 0; r < rows; r++) out[c * width + r] = in[r * columns + c];
  } else {
    for (int64_t r = 0; r < rows; r++)
      std::copy(in + r * columns, in + (r + 1) * columns, out.begin() + r * width);
  }
  return out;
}

// Every job's factor, packed. `of_b` takes B [columns, rank], else A [rank, columns].
std::vector<std::vector<float>> pack_factors(const Job* jobs, int64_t count, int64_t columns,
                                             bool of_b, bool transpose) {
  std::vector<std::vector<float>> out(count);
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; i++) {
    const Job& job = jobs[i];
    out[i] = of_b ? pack(job.b, columns, job.rank, transpose)
                  : pack(job.a, job.rank, columns, transpose);
  }
  return out;
}

// --- out[t, r] = scale · sum over c of x[t, c] · factor[c, r]: S from A, dS from B

template <class T>
void to_ranks(Matrix<T> x, const Job* jobs, int64_t count, const Keys* keys, bool of_b,
              float* out, int64_t R) {
  const auto factors = pack_factors(jobs, count, x.columns, of_b, !of_b);
  const RowKeys row_key = row_keys(jobs, count, keys);
  const std::vector<Block> work = blocks(jobs, count, 4 * ROWS);
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < work.size(); i++) {
    const Job& job = *work[i].job;
    const int64_t width = padded(job.rank);
    const float* factor = factors[work[i].job - jobs].data();
    std::vector<float> sums(ROWS * width);
    for (int64_t top = work[i].first; top < work[i].last; top += ROWS) {
      const int rows = (int)std::min<int64_t>(ROWS, work[i].last - top);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t first = 0; first < x.columns; first += CHUNK) {
        const int columns = (int)std::min<int64_t>(CHUNK, x.columns - first);
        float values[ROWS][CHUNK];
        for (int t = 0; t < rows; t++) load(x, top + t, first, columns, job, row_key, values[t]);
        for (int t = rows; t < ROWS; t++) std::memset(values[t], 0, columns * sizeof(float));
        for (int64_t r = 0; r < width; r += LANES) {
          vec sum[ROWS];
          for (int t = 0; t < ROWS; t++) sum[t] = *vector(&sums[t * width + r]);
          for (int c = 0; c < columns; c++) {
            const vec f = *(const vec*)(factor + (first + c) * width + r);
            for (int t = 0; t < ROWS; t++) sum[t] += splat(values[t][c]) * f;
          }
          for (int t = 0; t < ROWS; t++) *vector(&sums[t * width + r]) = sum[t];
        }
      }
      const float scale = of_b ? (float)job.scale : 1.0f;
      for (int t = 0; t < rows; t++)
        for (int64_t r = 0; r < job.rank; r++)
          out[(top + t) * R + r] = sums[t * width + r] * scale;
    }
  }
}

// --- y[t, c] += scale · D(sum over r of s[t, r] · factor[r, c]): Y from Bᵀ, dX from A

template <class T>
void from_ranks(Matrix<T> y, const Job* jobs, int64_t count, const Keys* keys, bool of_b,
                const float* s, int64_t R) {
  const auto factors = pack_factors(jobs, count, y.columns, of_b, of_b);
  const RowKeys row_key = row_keys(jobs, count, keys);
  const int64_t width = padded(y.columns);
  const std::vector<Block> work = blocks(jobs, count, 4 * ROWS);
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < work.size(); i++) {
    const Job& job = *work[i].job;
    const float* factor = factors[work[i].job - jobs].data();
    const float scale = of_b ? (float)job.scale : 1.0f;
    const Matrix<const float> ranks{s, R, R};
    for (int64_t top = work[i].first; top < work[i].last; top += ROWS) {
      const int rows = (int)std::min<int64_t>(ROWS, work[i].last - top);
      for (int64_t first = 0; first < y.columns; first += CHUNK) {
        const int columns = (int)std::min<int64_t>(CHUNK, y.columns - first);
        float values[ROWS][CHUNK];
        for (int c = 0; c < columns; c += LANES) {
          vec sum[ROWS] = {};
          const float* f = factor + first + c;
          for (int64_t r = 0; r < job.rank; r++, f += width)
            for (int t = 0; t < ROWS; t++)
              sum[t] += splat(*ranks.at(top + std::min(t, rows - 1), r)) * *(const vec*)f;
          for (int t = 0; t < ROWS; t++) *vector(&values[t][c]) = sum[t] * splat(scale);
        }
        for (int t = 0; t < rows; t++) {
          if (keys && job.threshold)
            drop(values[t], row_key[top + t], first, columns, job.threshold);
          T* out = y.at(top + t, first);
          for (int c = 0; c < columns; c++) narrow(widen(out[c]) + values[t][c], out[c]);
        }
      }
    }
  }
}

// --- gradient[c, r] = scale · sum over t of x[t, c] · s[t, r]: dB from dY and S, dAᵀ from D(X), dS

template <class T>
void over_rows(Matrix<T> x, const Job* jobs, int64_t count, const Keys* keys, bool of_b,
               const float* s, int64_t R) {
  constexpr int COLUMNS = 64, SUMS = LANES == 16 ? 16 : 8, DEPTH = 64;  // sums: registers
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
    for (int64_t top = job.start; top < job.stop; top += DEPTH) {
      const int depth = (int)std::min<int64_t>(DEPTH, job.stop - top);
      for (int t = 0; t < depth; t++) {
        load(x, top + t, first, columns, job, row_key, values[t]);
        std::memcpy(&ranks[t * width], s + (top + t) * R, job.rank * sizeof(float));
      }
      for (int64_t r = 0; r < width; r += LANES)
        for (int half = 0; half < columns; half += SUMS) {
          vec sum[SUMS];
          for (int c = 0; c < SUMS; c++) sum[c] = *vector(&sums[(half + c) * width + r]);
          for (int t = 0; t < depth; t++) {
            const vec rank = *vector(&ranks[t * width + r]);
            for (int c = 0; c < SUMS; c++) sum[c] += splat(values[t][half + c]) * rank;
          }
          for (int c = 0; c < SUMS; c++) *vector(&sums[(half + c) * width + r]) = sum[c];
        }
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
