// Weighted sums of the tiles that cover a rectangle of a canvas. Internal to each source of csrc/cpu.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/elements.h"
#include "cpu/tiles_kernel.h"
#include "cpu/vec.h"
#include "tiledattn/blending.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kGather = 128;  // elements collected at a time where they are not adjacent
constexpr int64_t kRuns = 64;     // runs of a row that are looked up at a time

/// Rows of tiles that cover a rectangle: the first row of each, and weights on x.
template <typename T>
struct Layers {
  int count;
  const T* rows[kBlendLayers];
  const Accumulator<T>* weights;
};

/// Where the sums of a rectangle go, as `To`, and the rows' weights in each layer: the products of those of z and y.
/// Sums in their own type may be begun already; others, and those that go past the caches, are complete in one call.
template <typename To, typename S>
struct Sums {
  To* to;
  int64_t row, rows;  // `row` elements from one row to the next
  const S* scales[kBlendLayers];
  bool started;  // else they begin at zero
};

/// A run of x and the tiles that cover it; where the first two and their weights begin, in each of kLayers.
template <int kLayers, typename T>
struct Run {
  const T* from[kLayers][2];
  const float* weights[2];
  int64_t length, count;
  const Cover* covers;
};

/// The terms of each layer, weighed by row, and what was there before if kStarted.
template <bool kStarted, int kLayers>
inline Vec total_of(const Vec (&found)[kLayers], const Vec (&scales)[kLayers], Vec before) {
  Vec total = kStarted ? fma(scales[0], found[0], before) : scales[0] * found[0];
  for (int layer = 1; layer < kLayers; ++layer) total = fma(scales[layer], found[layer], total);
  return total;
}

template <bool kStarted, typename To, typename Get>
inline Vec begun_at(const To* to, Get get) {
  if constexpr (kStarted) return get(to);
  return Vec::zero();
}

/// Writes a run of vectors that `sum` makes, from its column and a function that reads vectors. With `kStream` they go
/// past the caches and are whole.
template <bool kStream, typename To, typename Sum>
inline __attribute__((always_inline)) void put_run(To* to, int64_t length, const Sum& sum) {
  const auto whole = [](const auto* at) { return load_numbers(at); };
  int64_t x = 0;
  for (; x + 2 * Vec::width <= length; x += 2 * Vec::width) {
    const Vec first = sum(x, whole), second = sum(x + Vec::width, whole);
    put_numbers<kStream>(to + x, first);
    put_numbers<kStream>(to + x + Vec::width, second);
  }
  if (x + Vec::width <= length) {
    put_numbers<kStream>(to + x, sum(x, whole));
    x += Vec::width;
  }
  if constexpr (!kStream) {
    const int64_t rest = length - x;
    if (rest > 0) put_numbers(to + x, sum(x, [rest](const auto* at) { return load_numbers(at, rest); }), rest);
  }
}

/// A run that kCount tiles cover, one or two: their terms are weighed by x first, then by layer, in registers.
/// Elements are read `offset` after where they begin.
template <int kCount, int kLayers, bool kStarted, bool kStream, typename T, typename To>
inline __attribute__((always_inline)) void sum_few(const Run<kLayers, T>& run, int64_t offset,
                                                   const Vec (&scales)[kLayers], To* to) {
  const T* from[kLayers][kCount];
  const float* weights[kCount];
  for (int k = 0; k < kCount; ++k) {
    weights[k] = run.weights[k];
    for (int layer = 0; layer < kLayers; ++layer) from[layer][k] = run.from[layer][k] + offset;
  }
  put_run<kStream>(to, run.length, [&](int64_t x, auto get) __attribute__((always_inline)) {
    Vec found[kLayers];
    for (int k = 0; k < kCount; ++k) {
      const Vec weight = get(weights[k] + x);
      for (int layer = 0; layer < kLayers; ++layer) {
        const Vec value = get(from[layer][k] + x);
        found[layer] = k == 0 ? weight * value : fma(weight, value, found[layer]);
      }
    }
    return total_of<kStarted>(found, scales, begun_at<kStarted>(to + x, get));
  });
}

/// The same of any number of tiles, kBlendTerms at a time, as where elements are not adjacent. Never inlined: it would
/// leave the others not enough registers.
template <int kLayers, bool kStarted, bool kStream, typename T, typename To>
__attribute__((noinline)) void sum_many(const Layers<T>& layers, const Run<kLayers, T>& run, int64_t offset,
                                        const Vec (&scales)[kLayers], To* to) {
  put_run<kStream>(to, run.length, [&](int64_t x, auto get) {
    Vec total = begun_at<kStarted>(to + x, get);
    for (int64_t first = 0; first < run.count; first += kBlendTerms) {
      const int64_t last = run.count - first < kBlendTerms ? run.count : first + kBlendTerms;
      Vec found[kLayers];
      for (int64_t k = first; k < last; ++k) {
        const Vec weight = get(layers.weights + run.covers[k].weight + x);
        for (int layer = 0; layer < kLayers; ++layer) {
          const Vec value = get(layers.rows[layer] + run.covers[k].source + offset + x);
          found[layer] = k == first ? weight * value : fma(weight, value, found[layer]);
        }
      }
      total = first > 0 ? total_of<true>(found, scales, total) : total_of<kStarted>(found, scales, total);
    }
    return total;
  });
}

template <int kLayers, typename T>
Run<kLayers, T> run_of(const Layers<T>& layers, const CoveredRun& of, const Cover* covers) {
  Run<kLayers, T> run{};
  run.length = of.length, run.count = of.last_cover - of.first_cover, run.covers = covers + of.first_cover;
  for (int k = 0; k < (run.count < 2 ? run.count : 2); ++k) {
    run.weights[k] = layers.weights + run.covers[k].weight;
    for (int layer = 0; layer < kLayers; ++layer) run.from[layer][k] = layers.rows[layer] + run.covers[k].source;
  }
  return run;
}

/// At most kRuns runs of x in all rows. Row by row: who reads a part of every row before the rest of the first waits
/// for memory, since what is fetched ahead is what follows in a tile.
template <int kLayers, bool kStarted, bool kStream, typename T, typename To>
__attribute__((noinline)) void sum_runs(const Layers<T>& layers, const CoveredRun* first, const CoveredRun* last,
                                        const Cover* covers, int64_t row_stride, const Sums<To, float>& sums) {
  Run<kLayers, T> runs[kRuns], *end = runs;
  for (; first < last; ++first) *end++ = run_of<kLayers>(layers, *first, covers);
  // copies, which no store can change for all that the compiler knows
  const int64_t rows = sums.rows, step = sums.row;
  To* line = sums.to;
  for (int64_t row = 0, offset = 0; row < rows; ++row, offset += row_stride, line += step) {
    Vec scales[kLayers];
    for (int layer = 0; layer < kLayers; ++layer) scales[layer] = Vec::all(sums.scales[layer][row]);
    To* to = line;
    for (const Run<kLayers, T>* run = runs; run < end; to += run->length, ++run) {
      if (run->count == 1) {
        sum_few<1, kLayers, kStarted, kStream>(*run, offset, scales, to);
      } else if (run->count == 2) {
        sum_few<2, kLayers, kStarted, kStream>(*run, offset, scales, to);
      } else {
        sum_many<kLayers, kStarted, kStream>(layers, *run, offset, scales, to);
      }
    }
  }
}

template <bool kStarted, bool kStream, typename T, typename To>
void sum_layers(const Layers<T>& layers, const CoveredRun* first, const CoveredRun* last, const Cover* covers,
                int64_t row_stride, const Sums<To, float>& sums) {
  if (layers.count == 1) return sum_runs<1, kStarted, kStream>(layers, first, last, covers, row_stride, sums);
  sum_runs<2, kStarted, kStream>(layers, first, last, covers, row_stride, sums);
}

/// A rectangle of adjacent elements, runs of x in some rows. With `kStream` the sums, which are not started then, go
/// past the caches in whole vectors, so that nothing is read in order to be overwritten: they begin and end at
/// multiples of 64 bytes.
template <bool kStream, typename T, typename To>
void sum_rows(const Layers<T>& layers, const CoveredRun* first, const CoveredRun* last, const Cover* covers,
              int64_t row_stride, Sums<To, float> sums) {
  for (const CoveredRun* end; first < last; first = end) {
    end = last - first < kRuns ? last : first + kRuns;
    if constexpr (std::is_same_v<To, float> && !kStream) {
      if (sums.started) {
        sum_layers<true, false>(layers, first, end, covers, row_stride, sums);
      } else {
        sum_layers<false, false>(layers, first, end, covers, row_stride, sums);
      }
    } else {
      sum_layers<false, kStream>(layers, first, end, covers, row_stride, sums);
    }
    sums.to += end[-1].begin + end[-1].length - first->begin;
  }
}

template <bool kStream>
void sum_rows(const Layers<double>& layers, const CoveredRun* first, const CoveredRun* last, const Cover* covers,
              int64_t row_stride, const Sums<double, double>& sums) {
  for (int64_t row = 0; row < sums.rows; ++row) {
    double* to = sums.to + row * sums.row;
    for (const CoveredRun* run = first; run < last; to += run->length, ++run) {
      for (int64_t x = 0; x < run->length && !sums.started; ++x) to[x] = 0.0;
      for (int64_t some = run->first_cover; some < run->last_cover; some += kBlendTerms) {
        const int64_t end = run->last_cover - some < kBlendTerms ? run->last_cover : some + kBlendTerms;
        for (int layer = 0; layer < layers.count; ++layer) {
          const double scale = sums.scales[layer][row];
          for (int64_t k = some; k < end; ++k) {
            const double *from = layers.rows[layer] + covers[k].source + row * row_stride,
                         *weights = layers.weights + covers[k].weight;
            for (int64_t x = 0; x < run->length; ++x) to[x] = multiply_add(scale * weights[x], from[x], to[x]);
          }
        }
      }
    }
  }
}

/// A run of elements that are not adjacent on x, which at most kBlendTerms tiles cover: collected, row by row.
template <typename T, typename To>
void sum_apart(const Layers<T>& layers, const CoveredRun& run, const Cover* covers, int64_t row_stride, int64_t stride,
               const Sums<To, Accumulator<T>>& sums) {
  T gathered[kBlendLayers][kBlendTerms * kGather];
  Cover found[kBlendTerms];
  Layers<T> collected = layers;
  for (int layer = 0; layer < layers.count; ++layer) collected.rows[layer] = gathered[layer];
  Sums<To, Accumulator<T>> part = sums;
  part.rows = 1;
  for (int64_t row = 0; row < sums.rows; ++row) {
    for (int layer = 0; layer < layers.count; ++layer) part.scales[layer] = sums.scales[layer] + row;
    for (int64_t done = 0; done < run.length; done += kGather) {
      const int64_t length = run.length - done < kGather ? run.length - done : kGather;
      part.to = sums.to + row * sums.row + done;
      int64_t count = 0;
      for (int64_t k = run.first_cover; k < run.last_cover; ++k, ++count) {
        found[count] = {count * kGather, covers[k].weight + done};
        for (int layer = 0; layer < layers.count; ++layer) {
          const T* from = layers.rows[layer] + covers[k].source + row * row_stride + done * stride;
          T* to = gathered[layer] + count * kGather;
          for (int64_t i = 0; i < length; ++i) to[i] = from[i * stride];
        }
      }
      const CoveredRun whole{0, length, 0, count};
      sum_rows<false>(collected, &whole, &whole + 1, found, 0, part);
    }
  }
}

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
