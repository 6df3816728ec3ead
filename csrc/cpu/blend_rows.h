// Weighted sums of the tiles that cover a rectangle of a canvas. Internal to each source of csrc/cpu.
#pragma once

#include <cstdint>

#include "cpu/tiles_kernel.h"
#include "cpu/vec.h"
#include "tiledattn/blending.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kGather = 128;                // elements collected at a time where they are not adjacent
constexpr int kMost = Vec::width < 16 ? 2 : 4;  // vectors of a row, as many as registers hold with their weights

/// Rows of tiles that cover a rectangle: the first row of each, and weights on x. How far ahead those elements lie that
/// are fetched meanwhile if they are not in the caches: each row may be on a page of its own.
template <typename T>
struct Layers {
  int count;
  const T* rows[kBlendLayers];
  const Accumulator<T>* weights;
  int64_t ahead;
};

/// The same tiles on x in each layer. Small enough for registers: what is read in vectors that was just written in
/// parts would wait for all sums before it.
struct Places {
  const Cover* first;
  int64_t count;
};

/// Where the sums of a rectangle go, and the rows' weights in each layer: the products of those of z and y.
template <typename S>
struct Sums {
  S* to;
  int64_t row, rows, length;  // `row` elements from one row to the next
  const S* scales[kBlendLayers];
  bool started;  // else they begin at zero
};

inline Vec load_numbers(const float* from, int64_t count) { return load_floats(from, count); }
inline Vec load_numbers(const Half* from, int64_t count) { return from_float16(load_words(from, count)); }
inline Vec load_numbers(const Brain* from, int64_t count) { return from_bfloat16(load_words(from, count)); }

/// Brings some vectors' elements into the caches.
template <typename T>
inline void fetch(const T* from, int vectors) {
  constexpr int kPerLine = 64 / sizeof(T);
  for (int i = 0; i < vectors * Vec::width; i += kPerLine) __builtin_prefetch(from + i);
}

/// kWidth vectors of all rows from column x on. Each row stays in registers until all terms are added: weighed by x
/// first, then by row. `kGiven` layers; `kCount` terms, 0: as many as there are. Never inlined: all of its variants in
/// one function would leave none of them enough registers.
template <int kGiven, int kCount, int kWidth, bool kStream, typename T>
__attribute__((noinline)) void sum_columns(const Layers<T>& layers, Places places, int64_t row_stride, int64_t x,
                                           const Sums<float>& sums) {
  constexpr int kHeld = kCount ? kCount : 1;
  const int64_t count = kCount ? kCount : places.count;
  const int64_t ahead = layers.ahead;
  Vec weights[kHeld][kWidth];
  const T* from[kGiven][kHeld];
  for (int k = 0; k < kCount; ++k) {
    for (int i = 0; i < kWidth; ++i) weights[k][i] = load(layers.weights + places.first[k].weight + x + i * Vec::width);
    for (int layer = 0; layer < kGiven; ++layer) from[layer][k] = layers.rows[layer] + places.first[k].source + x;
  }
  // copies, which no store can change for all that the compiler knows
  const float* scales[kGiven];
  for (int layer = 0; layer < kGiven; ++layer) scales[layer] = sums.scales[layer];
  const int64_t rows = sums.rows, step = sums.row;
  const bool started = sums.started;
  float* to = sums.to + x;
  for (int64_t row = 0; row < rows; ++row, to += step) {
    Vec total[kWidth];
    for (int layer = 0; layer < kGiven; ++layer) {
      const Vec scale = Vec::all(scales[layer][row]);
      Vec found[kWidth];
      for (int k = 0; k < count; ++k) {
        const T* at = kCount ? from[layer][k] : layers.rows[layer] + places.first[k].source + row * row_stride + x;
        if constexpr (kStream) fetch(at + ahead, kWidth);
        for (int i = 0; i < kWidth; ++i) {
          const Vec numbers = load_numbers(at + i * Vec::width, Vec::width);
          const Vec weight =
              kCount ? weights[k][i] : load(layers.weights + places.first[k].weight + x + i * Vec::width);
          found[i] = k == 0 ? weight * numbers : fma(weight, numbers, found[i]);
        }
        if constexpr (kCount > 0) from[layer][k] += row_stride;
      }
      for (int i = 0; i < kWidth; ++i) {
        if (layer > 0) {
          total[i] = fma(scale, found[i], total[i]);
        } else {
          total[i] = started ? fma(scale, found[i], load(to + i * Vec::width)) : scale * found[i];
        }
      }
    }
    for (int i = 0; i < kWidth; ++i)
      kStream ? stream(to + i * Vec::width, total[i]) : store(to + i * Vec::width, total[i]);
  }
}

/// The same for fewer elements of a row than a vector has.
template <typename T>
void sum_rest(const Layers<T>& layers, Places places, int64_t row_stride, int64_t x, const Sums<float>& sums) {
  const int64_t rest = sums.length - x;
  for (int64_t row = 0; row < sums.rows; ++row) {
    float* to = sums.to + row * sums.row + x;
    Vec total = sums.started ? load_floats(to, rest) : Vec::zero();
    for (int layer = 0; layer < layers.count; ++layer) {
      Vec found = Vec::zero();
      for (int k = 0; k < places.count; ++k) {
        const Vec numbers = load_numbers(layers.rows[layer] + places.first[k].source + row * row_stride + x, rest);
        found = fma(load_floats(layers.weights + places.first[k].weight + x, rest), numbers, found);
      }
      total = fma(Vec::all(sums.scales[layer][row]), found, total);
    }
    store_floats(to, total, rest);
  }
}

template <int kGiven, int kCount, bool kStream, typename T>
void sum_all(const Layers<T>& layers, Places places, int64_t row_stride, const Sums<float>& sums) {
  int64_t x = 0;
  const auto fits = [&](int width) { return x + width * Vec::width <= sums.length; };
  for (; fits(kMost); x += kMost * Vec::width)
    sum_columns<kGiven, kCount, kMost, kStream>(layers, places, row_stride, x, sums);
  if (kMost > 2 && fits(2)) {
    sum_columns<kGiven, kCount, 2, kStream>(layers, places, row_stride, x, sums);
    x += 2 * Vec::width;
  }
  if (fits(1)) {
    sum_columns<kGiven, kCount, 1, kStream>(layers, places, row_stride, x, sums);
    x += Vec::width;
  }
  if (x < sums.length) sum_rest(layers, places, row_stride, x, sums);
}

template <int kGiven, bool kStream, typename T>
void sum_layers(const Layers<T>& layers, Places places, int64_t row_stride, const Sums<float>& sums) {
  if (places.count == 1) return sum_all<kGiven, 1, kStream>(layers, places, row_stride, sums);
  if (places.count == 2) return sum_all<kGiven, 2, kStream>(layers, places, row_stride, sums);
  sum_all<kGiven, 0, kStream>(layers, places, row_stride, sums);
}

/// A rectangle of adjacent elements. With `kStream` the sums, which are not started then, go past the caches in whole
/// vectors, so that nothing is read in order to be overwritten: they begin and end at multiples of 64 bytes.
template <bool kStream, typename T>
void sum_rectangle(const Layers<T>& layers, Places places, int64_t row_stride, const Sums<float>& sums) {
  if (layers.count == 1) return sum_layers<1, kStream>(layers, places, row_stride, sums);
  sum_layers<2, kStream>(layers, places, row_stride, sums);
}

template <bool kStream>
void sum_rectangle(const Layers<double>& layers, Places places, int64_t row_stride, const Sums<double>& sums) {
  for (int64_t row = 0; row < sums.rows; ++row) {
    double* to = sums.to + row * sums.row;
    for (int64_t x = 0; x < sums.length && !sums.started; ++x) to[x] = 0.0;
    for (int layer = 0; layer < layers.count; ++layer) {
      for (int k = 0; k < places.count; ++k) {
        const double *from = layers.rows[layer] + places.first[k].source + row * row_stride,
                     *weights = layers.weights + places.first[k].weight;
        const double scale = sums.scales[layer][row];
        for (int64_t x = 0; x < sums.length; ++x) to[x] = multiply_add(scale * weights[x], from[x], to[x]);
      }
    }
  }
}

/// A rectangle of elements that are not adjacent on x: collected, row by row.
template <typename T>
void sum_apart(const Layers<T>& layers, Places places, int64_t row_stride, int64_t stride,
               const Sums<Accumulator<T>>& sums) {
  T gathered[kBlendLayers][kBlendTerms * kGather];
  Cover found[kBlendTerms];
  Layers<T> collected = layers;
  for (int layer = 0; layer < layers.count; ++layer) collected.rows[layer] = gathered[layer];
  Sums<Accumulator<T>> part = sums;
  part.rows = 1;
  for (int64_t row = 0; row < sums.rows; ++row) {
    for (int layer = 0; layer < layers.count; ++layer) part.scales[layer] = sums.scales[layer] + row;
    for (int64_t done = 0; done < sums.length; done += kGather) {
      part.length = sums.length - done < kGather ? sums.length - done : kGather;
      part.to = sums.to + row * sums.row + done;
      for (int64_t k = 0; k < places.count; ++k) {
        found[k] = {k * kGather, places.first[k].weight + done};
        for (int layer = 0; layer < layers.count; ++layer) {
          const T* from = layers.rows[layer] + places.first[k].source + row * row_stride + done * stride;
          T* to = gathered[layer] + k * kGather;
          for (int64_t i = 0; i < part.length; ++i) to[i] = from[i * stride];
        }
      }
      sum_rectangle<false>(collected, Places{found, places.count}, 0, part);
    }
  }
}

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
