#include <type_traits>

#include "cpu/counter.h"
#include "cpu/row_writer.h"
#include "cpu/tiles_kernel.h"
#include "cpu/vec.h"
#include "tiledattn/blending.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kGather = 256;                   // elements collected at a time where they are not adjacent
constexpr int kTerms = 16;                         // tiles that are added up in registers
constexpr int kColumns = Vec::width < 16 ? 2 : 1;  // vectors next to one another and
constexpr int kTogether = 8 / kColumns;            // rows that are summed at a time
constexpr int64_t kAhead = 8;                      // rows that are fetched ahead where nothing is in the caches

/// One of the tiles that cover a run of x: its elements from the band's first row on, its weights on x, and how
/// far ahead of them the elements lie that are fetched meanwhile: each row may be on a page of its own.
template <typename T>
struct Term {
  const T* from;
  const Accumulator<T>* weights;
  int64_t ahead;
};

/// Where the sums of a rectangle go, and the rows' weights: the products of those of z and y.
template <typename S>
struct Sums {
  S* to;
  int64_t row, rows, length;  // `row` elements from one row to the next
  const S* scales;
  bool started;  // else they begin at zero
};

inline Vec load_numbers(const float* from, int64_t count) { return load_floats(from, count); }
inline Vec load_numbers(const Half* from, int64_t count) { return from_float16(load_words(from, count)); }
inline Vec load_numbers(const Brain* from, int64_t count) { return from_bfloat16(load_words(from, count)); }

/// Rows of a rectangle and what is added up there. Copies of their own, which no store can change for all that the
/// compiler knows; `kCount` 0: as many terms as are given.
template <int kRows, int kCount, typename T>
struct Rows {
  static constexpr int most = kCount ? kCount : kTerms;
  Term<T> terms[most];
  int64_t count, row_stride, row;
  float* to;
  float scales[kRows];

  Rows(const Term<T>* from, int given, int64_t stride, int64_t first, const Sums<float>& sums)
      : count(kCount ? kCount : given), row_stride(stride), row(sums.row), to(sums.to + first * sums.row) {
    for (int64_t k = 0; k < count; ++k) {
      terms[k] = from[k];
      terms[k].from += first * stride;
    }
    for (int r = 0; r < kRows; ++r) scales[r] = sums.scales[first + r];
  }
};

/// kWidth vectors of kRows rows, in registers until all terms are added: weighed by x first, then by row.
template <int kWidth, bool kStarted, int kRows, int kCount, typename T>
inline void sum_vectors(const Rows<kRows, kCount, T>& rows, int64_t x) {
  Vec found[kRows][kWidth];
  for (int64_t k = 0; k < rows.count; ++k) {
    const Term<T>& term = rows.terms[k];
    Vec weights[kWidth];
    for (int i = 0; i < kWidth; ++i) weights[i] = load(term.weights + x + i * Vec::width);
    const T *from = term.from + x, *ahead = from + term.ahead;
    for (int r = 0; r < kRows; ++r, from += rows.row_stride, ahead += rows.row_stride) {
      __builtin_prefetch(ahead);
      for (int i = 0; i < kWidth; ++i) {
        const Vec numbers = load_numbers(from + i * Vec::width, Vec::width);
        found[r][i] = k == 0 ? weights[i] * numbers : fma(weights[i], numbers, found[r][i]);
      }
    }
  }
  float* to = rows.to + x;
  for (int r = 0; r < kRows; ++r, to += rows.row) {
    const Vec scale = Vec::all(rows.scales[r]);
    for (int i = 0; i < kWidth; ++i) {
      float* at = to + i * Vec::width;
      store(at, kStarted ? fma(scale, found[r][i], load(at)) : scale * found[r][i]);
    }
  }
}

/// The same for fewer elements of one row than a vector has.
template <typename T>
inline void sum_rest(const Term<T>* terms, int count, int64_t row_stride, int64_t row, int64_t x,
                     const Sums<float>& sums) {
  const int64_t rest = sums.length - x;
  Vec found = Vec::zero();
  for (int k = 0; k < count; ++k) {
    const Vec numbers = load_numbers(terms[k].from + row * row_stride + x, rest);
    found = fma(load_floats(terms[k].weights + x, rest), numbers, found);
  }
  float* to = sums.to + row * sums.row + x;
  const Vec scale = Vec::all(sums.scales[row]);
  store_floats(to, sums.started ? fma(scale, found, load_floats(to, rest)) : scale * found, rest);
}

/// Never inlined: all of its variants in one function would leave none of them enough registers.
template <int kRows, int kCount, bool kStarted, typename T>
__attribute__((noinline)) void sum_rows(const Term<T>* terms, int count, int64_t row_stride, int64_t row,
                                        const Sums<float>& sums) {
  constexpr int64_t kWide = kColumns * Vec::width;
  const Rows<kRows, kCount, T> rows(terms, count, row_stride, row, sums);
  const int64_t length = sums.length;
  int64_t x = 0;
  for (; x + kWide <= length; x += kWide) sum_vectors<kColumns, kStarted>(rows, x);
  for (; x + Vec::width <= length; x += Vec::width) sum_vectors<1, kStarted>(rows, x);
  for (int r = 0; r < kRows && x < sums.length; ++r) sum_rest(terms, count, row_stride, row + r, x, sums);
}

template <int kCount, bool kStarted, typename T>
void sum_all(const Term<T>* terms, int count, int64_t row_stride, const Sums<float>& sums) {
  int64_t row = 0;
  for (; row + kTogether <= sums.rows; row += kTogether) {
    sum_rows<kTogether, kCount, kStarted>(terms, count, row_stride, row, sums);
  }
  for (; row < sums.rows; ++row) sum_rows<1, kCount, kStarted>(terms, count, row_stride, row, sums);
}

/// A rectangle of adjacent elements.
template <typename T>
void sum_rectangle(const Term<T>* terms, int count, int64_t row_stride, const Sums<float>& sums) {
  if (count == 1)
    return sums.started ? sum_all<1, true>(terms, 1, row_stride, sums) : sum_all<1, false>(terms, 1, row_stride, sums);
  if (count == 2)
    return sums.started ? sum_all<2, true>(terms, 2, row_stride, sums) : sum_all<2, false>(terms, 2, row_stride, sums);
  return sums.started ? sum_all<0, true>(terms, count, row_stride, sums)
                      : sum_all<0, false>(terms, count, row_stride, sums);
}

inline void sum_rectangle(const Term<double>* terms, int count, int64_t row_stride, const Sums<double>& sums) {
  for (int64_t row = 0; row < sums.rows; ++row) {
    double* to = sums.to + row * sums.row;
    for (int64_t x = 0; x < sums.length && !sums.started; ++x) to[x] = 0.0;
    for (int k = 0; k < count; ++k) {
      const double *from = terms[k].from + row * row_stride, *weights = terms[k].weights;
      for (int64_t x = 0; x < sums.length; ++x) to[x] = multiply_add(sums.scales[row] * weights[x], from[x], to[x]);
    }
  }
}

/// A rectangle of elements that are not adjacent on x: collected, row by row.
template <typename T>
void sum_apart(const Term<T>* terms, int count, int64_t row_stride, int64_t stride, const Sums<Accumulator<T>>& sums) {
  T gathered[kTerms][kGather];
  Term<T> found[kTerms];
  for (int64_t row = 0; row < sums.rows; ++row) {
    for (int64_t done = 0; done < sums.length; done += kGather) {
      const int64_t part = sums.length - done < kGather ? sums.length - done : kGather;
      for (int k = 0; k < count; ++k) {
        const T* from = terms[k].from + row * row_stride + done * stride;
        for (int64_t i = 0; i < part; ++i) gathered[k][i] = from[i * stride];
        found[k] = {gathered[k], terms[k].weights + done, 0};
      }
      sum_rectangle(found, count, 0,
                    {sums.to + row * sums.row + done, sums.row, 1, part, sums.scales + row, sums.started});
    }
  }
}

/// Sums rounded to elements: where they are if there is nothing to round, else in `buffer`.
inline const float* rounded(const float* sums, float*, int64_t) { return sums; }
inline const double* rounded(const double* sums, double*, int64_t) { return sums; }

inline const Half* rounded(const float* sums, Half* buffer, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::width) {
    store_words(buffer + i, to_float16(load_floats(sums + i, count - i)), count - i);
  }
  return buffer;
}

inline const Brain* rounded(const float* sums, Brain* buffer, int64_t count) {
  // not by the bfloat16 instructions: they take subnormals for zeros
  for (int64_t i = 0; i < count; ++i) from_number(sums[i], buffer + i);
  return buffer;
}

template <typename T, bool kStream>
class Blend {
 public:
  explicit Blend(const BlendRows& call) : call_(call), out_(call.out) {}

  void run(int64_t first, int64_t last) {
    Counter<5> place{{call_.batch, call_.channels, call_.size[0], call_.bands, call_.blocks}, {}};
    place.seek(first);
    for (int64_t item = first; item < last; ++item, place.next()) {
      const auto [b, c, z, band, block] = place.at;
      const T* channel = reinterpret_cast<const T*>(call_.source) + b * call_.batch_stride + c * call_.channel_stride;
      const CoveredRun& rows = call_.runs[1][band];
      const int64_t begin = block * kBlendBlock;
      const int64_t length = call_.size[2] - begin < kBlendBlock ? call_.size[2] - begin : kBlendBlock;
      const int64_t at_z = ((b * call_.channels + c) * call_.size[0] + z) * call_.size[1];
      T* out = reinterpret_cast<T*>(call_.out) + (at_z + rows.begin) * call_.size[2] + begin;
      if constexpr (std::is_same_v<T, S> && !kStream) {
        sum_band(channel, call_.runs[0][z], rows, block, out, call_.size[2]);
      } else {
        sum_band(channel, call_.runs[0][z], rows, block, sums_, length);
        write(out, rows.length, length);
      }
    }
    out_.finish();
  }

 private:
  using S = Accumulator<T>;

  /// The rows of a band in a block of x: `row` sums from one to the next. Row of tiles by row of tiles, so that each
  /// is read from its one end to the other.
  void sum_band(const T* channel, const CoveredRun& z, const CoveredRun& y, int64_t block, S* sums, int64_t row) {
    const CoveredRun *first = call_.runs[2] + call_.block_start[block],
                     *end = call_.runs[2] + call_.block_start[block + 1];
    bool started = false;
    for (int64_t i = z.first_cover; i < z.last_cover; ++i) {
      const Cover& at_z = call_.covers[0][i];
      for (int64_t j = y.first_cover; j < y.last_cover; ++j, started = true) {
        const Cover& at_y = call_.covers[1][j];
        for (int64_t r = 0; r < y.length; ++r) scales_[r] = weights(0)[at_z.weight] * weights(1)[at_y.weight + r];
        const T* tiles = channel + at_z.source + at_y.source;
        for (const CoveredRun* x = first; x < end; ++x) {
          sum(tiles, *x, x + 1 < end ? x[1] : *x,
              {sums + x->begin - first->begin, row, y.length, x->length, scales_, started});
        }
      }
    }
  }

  /// A run of x in a row of tiles: the tiles that cover it, in their order.
  void sum(const T* tiles, const CoveredRun& x, const CoveredRun& next, Sums<S> sums) {
    Term<T> terms[kTerms];
    for (int64_t k = 0, covers = x.last_cover - x.first_cover; k < covers; sums.started = true) {
      int count = 0;
      for (; k < covers && count < kTerms; ++k) {
        const Cover& at = call_.covers[2][x.first_cover + k];
        const int64_t same = next.first_cover + k, last = next.last_cover - 1;
        const Cover& then = call_.covers[2][same < last ? same : last];
        terms[count++] = {tiles + at.source, weights(2) + at.weight,
                          kStream ? kAhead * call_.row_stride : then.source - at.source};
      }
      if (call_.stride == 1) {
        sum_rectangle(terms, count, call_.row_stride, sums);
      } else {
        sum_apart(terms, count, call_.row_stride, call_.stride, sums);
      }
    }
  }

  void write(T* out, int64_t rows, int64_t length) {
    for (int64_t row = 0; row < rows; ++row) {
      out_.seek(reinterpret_cast<char*>(out + row * call_.size[2]));
      out_.append(reinterpret_cast<const char*>(rounded(sums_ + row * length, buffer_, length)), length * sizeof(T));
    }
  }

  const S* weights(int axis) const { return static_cast<const S*>(call_.weights[axis]); }

  const BlendRows call_;
  RowWriter<kStream> out_;
  S scales_[kBlendRows];
  alignas(64) S sums_[kBlendElements];
  alignas(64) T buffer_[kBlendBlock];
};

template <typename T>
void blend(const BlendRows& call, int64_t first, int64_t last) {
  if (call.stream) {
    Blend<T, true>(call).run(first, last);
  } else {
    Blend<T, false>(call).run(first, last);
  }
}

}  // namespace

void blend_rows(const BlendRows& call, int64_t first, int64_t last) {
  switch (call.type) {
    case ElementType::float16:
      return blend<Half>(call, first, last);
    case ElementType::bfloat16:
      return blend<Brain>(call, first, last);
    case ElementType::float32:
      return blend<float>(call, first, last);
    case ElementType::float64:
      return blend<double>(call, first, last);
  }
}

}  // namespace tiledattn::TILEDATTN_ISA
