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

constexpr int64_t kGather = 128;                // elements collected at a time where they are not adjacent
constexpr int kMost = Vec::width == 8 ? 2 : 4;  // vectors of a row: a line of floats or more

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

/// Where the sums of a rectangle go, as `To`, and the rows' weights in each layer: the products of those of z and y.
/// Sums in their own type may be begun already.
template <typename To, typename S>
struct Sums {
  To* to;
  int64_t row, rows, length;  // `row` elements from one row to the next
  const S* scales[kBlendLayers];
  bool started;  // else they begin at zero
};

/// Brings some vectors' elements into the caches.
template <typename T>
inline void fetch(const T* from, int vectors) {
  constexpr int kPerLine = 64 / sizeof(T);
  for (int i = 0; i < vectors * Vec::width; i += kPerLine) __builtin_prefetch(from + i);
}

/// kWidth vectors of all rows from column x on; with `kPart` the last one holds what is left of the row. Each row stays
/// in registers until all terms are added: weighed by x first, then by row. `kGiven` layers; `kCount` terms, 0: as many
/// as there are. Never inlined: all of its variants in one function would leave none of them enough registers.
template <int kGiven, int kCount, int kWidth, bool kPart, bool kStream, typename T, typename To>
__attribute__((noinline)) void sum_columns(const Layers<T>& layers, Places places, int64_t row_stride, int64_t x,
                                           const Sums<To, float>& sums) {
  static_assert(!(kPart && kStream), "lines are written as a whole");
  constexpr int kHeld = kCount ? kCount : 1;
  const int64_t count = kCount ? kCount : places.count;
  const int64_t last = sums.length - x - (kWidth - 1) * Vec::width;
  const auto get = [last](const auto* from, int i) {
    return kPart && i == kWidth - 1 ? load_numbers(from + i * Vec::width, last) : load_numbers(from + i * Vec::width);
  };
  const int64_t ahead = layers.ahead;
  Vec weights[kHeld][kWidth];
  const T* from[kGiven][kHeld];
  for (int k = 0; k < kCount; ++k) {
    for (int i = 0; i < kWidth; ++i) weights[k][i] = get(layers.weights + places.first[k].weight + x, i);
    for (int layer = 0; layer < kGiven; ++layer) from[layer][k] = layers.rows[layer] + places.first[k].source + x;
  }
  // copies, which no store can change for all that the compiler knows
  const float* scales[kGiven];
  for (int layer = 0; layer < kGiven; ++layer) scales[layer] = sums.scales[layer];
  const int64_t rows = sums.rows, step = sums.row;
  const bool started = std::is_same_v<To, float> && sums.started;
  To* to = sums.to + x;
  for (int64_t row = 0; row < rows; ++row, to += step) {
    Vec total[kWidth];
    for (int layer = 0; layer < kGiven; ++layer) {
      const Vec scale = Vec::all(scales[layer][row]);
      Vec found[kWidth];
      for (int k = 0; k < count; ++k) {
        const T* at = kCount ? from[layer][k] : layers.rows[layer] + places.first[k].source + row * row_stride + x;
        if constexpr (kStream) fetch(at + ahead, kWidth);
        for (int i = 0; i < kWidth; ++i) {
          const Vec weight = kCount ? weights[k][i] : get(layers.weights + places.first[k].weight + x, i);
          found[i] = k == 0 ? weight * get(at, i) : fma(weight, get(at, i), found[i]);
        }
        if constexpr (kCount > 0) from[layer][k] += row_stride;
      }
      for (int i = 0; i < kWidth; ++i) {
        if (layer > 0) {
          total[i] = fma(scale, found[i], total[i]);
        } else {
          total[i] = started ? fma(scale, found[i], get(to, i)) : scale * found[i];
        }
      }
    }
    for (int i = 0; i < kWidth - kPart; ++i) put_numbers<kStream>(to + i * Vec::width, total[i]);
    if constexpr (kPart) put_numbers(to + (kWidth - 1) * Vec::width, total[kWidth - 1], last);
  }
}

template <int kGiven, int kCount, bool kStream, typename T, typename To>
void sum_all(const Layers<T>& layers, Places places, int64_t row_stride, const Sums<To, float>& sums) {
  int64_t x = 0;
  const auto fits = [&](int width) { return x + width * Vec::width <= sums.length; };
  for (; fits(kMost); x += kMost * Vec::width)
    sum_columns<kGiven, kCount, kMost, false, kStream>(layers, places, row_stride, x, sums);
  if (kMost > 2 && fits(2)) {
    sum_columns<kGiven, kCount, 2, false, kStream>(layers, places, row_stride, x, sums);
    x += 2 * Vec::width;
  }
  if constexpr (kStream) {
    if (x < sums.length) sum_columns<kGiven, kCount, 1, false, true>(layers, places, row_stride, x, sums);
  } else if (x + Vec::width < sums.length) {
    sum_columns<kGiven, kCount, 2, true, false>(layers, places, row_stride, x, sums);
  } else if (x + Vec::width == sums.length) {
    sum_columns<kGiven, kCount, 1, false, false>(layers, places, row_stride, x, sums);
  } else if (x < sums.length) {
    sum_columns<kGiven, kCount, 1, true, false>(layers, places, row_stride, x, sums);
  }
}

template <int kGiven, bool kStream, typename T, typename To>
void sum_layers(const Layers<T>& layers, Places places, int64_t row_stride, const Sums<To, float>& sums) {
  if (places.count == 1) return sum_all<kGiven, 1, kStream>(layers, places, row_stride, sums);
  if (places.count == 2) return sum_all<kGiven, 2, kStream>(layers, places, row_stride, sums);
  sum_all<kGiven, 0, kStream>(layers, places, row_stride, sums);
}

/// A rectangle of adjacent elements. With `kStream` the sums, which are not started then, go past the caches in whole
/// vectors, so that nothing is read in order to be overwritten: they begin and end at multiples of 64 bytes.
template <bool kStream, typename T, typename To>
void sum_rectangle(const Layers<T>& layers, Places places, int64_t row_stride, const Sums<To, float>& sums) {
  if (layers.count == 1) return sum_layers<1, kStream>(layers, places, row_stride, sums);
  sum_layers<2, kStream>(layers, places, row_stride, sums);
}

template <bool kStream>
void sum_rectangle(const Layers<double>& layers, Places places, int64_t row_stride, const Sums<double, double>& sums) {
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
template <typename T, typename To>
void sum_apart(const Layers<T>& layers, Places places, int64_t row_stride, int64_t stride,
               const Sums<To, Accumulator<T>>& sums) {
  T gathered[kBlendLayers][kBlendTerms * kGather];
  Cover found[kBlendTerms];
  Layers<T> collected = layers;
  for (int layer = 0; layer < layers.count; ++layer) collected.rows[layer] = gathered[layer];
  Sums<To, Accumulator<T>> part = sums;
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
