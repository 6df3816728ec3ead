#include <type_traits>

#include "cpu/counter.h"
#include "cpu/row_writer.h"
#include "cpu/tiles_kernel.h"
#include "cpu/vec.h"
#include "tiledattn/blending.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kGather = 256;  // elements collected at a time where they are not adjacent
constexpr int kTogether = 8;      // rows that are summed at a time
constexpr int64_t kAhead = 8;     // rows that are fetched before they are needed: each may lie on a page of its own
constexpr int kTerms = 16;        // tiles that are added up in registers

/// One of the tiles that cover a rectangle: its elements and weights there.
template <typename T>
struct Term {
  const T* from;
  const Accumulator<T>*weights_x, *weights_y;
  Accumulator<T> weight_z;
};

/// Where the sums of a rectangle go.
template <typename S>
struct Sums {
  S* to;
  int64_t row, rows, length;  // `row` elements from one row to the next
  bool started;               // else they begin at zero
};

inline Vec load_numbers(const float* from, int64_t count) { return load_floats(from, count); }
inline Vec load_numbers(const Half* from, int64_t count) { return from_float16(load_words(from, count)); }
inline Vec load_numbers(const Brain* from, int64_t count) { return from_bfloat16(load_words(from, count)); }

/// Weights of rows, by term: the products of those of z and y.
using Scales = float[kTerms][kBlendRows];

/// kRows vectors below one another, in registers until all terms are added. `x` and `row` count from the rectangle's
/// own.
template <int kRows, typename T>
inline void sum_vectors(const Term<T>* terms, int count, const Scales& scales, int64_t row_stride, int64_t row,
                        int64_t x, const Sums<float>& sums) {
  float* to = sums.to + row * sums.row + x;
  Vec found[kRows];
  for (int r = 0; r < kRows; ++r) found[r] = sums.started ? load(to + r * sums.row) : Vec::zero();
  for (int k = 0; k < count; ++k) {
    const T* from = terms[k].from + row * row_stride + x;
    const Vec weights = load(terms[k].weights_x + x);
    for (int r = 0; r < kRows; ++r) {
      const T* at = from + r * row_stride;
      __builtin_prefetch(at + kAhead * row_stride);
      found[r] = fma(Vec::all(scales[k][row + r]) * weights, load_numbers(at, Vec::width), found[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) store(to + r * sums.row, found[r]);
}

/// The same for fewer elements of one row than a vector has.
template <typename T>
inline void sum_rest(const Term<T>* terms, int count, const Scales& scales, int64_t row_stride, int64_t row, int64_t x,
                     const Sums<float>& sums) {
  const int64_t rest = sums.length - x;
  float* to = sums.to + row * sums.row + x;
  Vec found = sums.started ? load_floats(to, rest) : Vec::zero();
  for (int k = 0; k < count; ++k) {
    const Vec weights = Vec::all(scales[k][row]) * load_floats(terms[k].weights_x + x, rest);
    found = fma(weights, load_numbers(terms[k].from + row * row_stride + x, rest), found);
  }
  store_floats(to, found, rest);
}

template <int kRows, typename T>
inline void sum_rows(const Term<T>* terms, int count, const Scales& scales, int64_t row_stride, int64_t row,
                     const Sums<float>& sums) {
  int64_t x = 0;
  for (; x + Vec::width <= sums.length; x += Vec::width) {
    sum_vectors<kRows>(terms, count, scales, row_stride, row, x, sums);
  }
  for (int r = 0; r < kRows && x < sums.length; ++r) sum_rest(terms, count, scales, row_stride, row + r, x, sums);
}

/// A rectangle of adjacent elements.
template <typename T>
void sum_rectangle(const Term<T>* terms, int count, int64_t row_stride, const Sums<float>& sums) {
  Scales scales;
  for (int k = 0; k < count; ++k) {
    for (int64_t row = 0; row < sums.rows; ++row) scales[k][row] = terms[k].weight_z * terms[k].weights_y[row];
  }
  int64_t row = 0;
  for (; row + kTogether <= sums.rows; row += kTogether)
    sum_rows<kTogether>(terms, count, scales, row_stride, row, sums);
  for (; row < sums.rows; ++row) sum_rows<1>(terms, count, scales, row_stride, row, sums);
}

inline void sum_rectangle(const Term<double>* terms, int count, int64_t row_stride, const Sums<double>& sums) {
  for (int64_t row = 0; row < sums.rows; ++row) {
    double* to = sums.to + row * sums.row;
    for (int64_t x = 0; x < sums.length && !sums.started; ++x) to[x] = 0.0;
    for (int k = 0; k < count; ++k) {
      const double scale = terms[k].weight_z * terms[k].weights_y[row];
      const double *from = terms[k].from + row * row_stride, *weights = terms[k].weights_x;
      for (int64_t x = 0; x < sums.length; ++x) to[x] = multiply_add(scale * weights[x], from[x], to[x]);
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
        found[k] = {gathered[k], terms[k].weights_x + done, terms[k].weights_y + row, terms[k].weight_z};
      }
      sum_rectangle(found, count, 0, {sums.to + row * sums.row + done, sums.row, 1, part, sums.started});
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

  /// The rows of a band in a block of x: `row` sums from one to the next.
  void sum_band(const T* channel, const CoveredRun& z, const CoveredRun& y, int64_t block, S* sums, int64_t row) {
    const CoveredRun *x = call_.runs[2] + call_.block_start[block], *end = call_.runs[2] + call_.block_start[block + 1];
    for (const int64_t begin = x->begin; x < end; ++x) {
      sum(channel, z, y, *x, {sums + x->begin - begin, row, y.length, x->length, false});
    }
  }

  /// A rectangle: the tiles that cover it, in their order.
  void sum(const T* channel, const CoveredRun& z, const CoveredRun& y, const CoveredRun& x, Sums<S> sums) {
    Term<T> terms[kTerms];
    int count = 0;
    for (int64_t i = z.first_cover; i < z.last_cover; ++i) {
      const Cover& at_z = call_.covers[0][i];
      for (int64_t j = y.first_cover; j < y.last_cover; ++j) {
        const Cover& at_y = call_.covers[1][j];
        for (int64_t k = x.first_cover; k < x.last_cover; ++k) {
          const Cover& at_x = call_.covers[2][k];
          if (count == kTerms) {
            add(terms, count, sums);
            sums.started = true, count = 0;
          }
          terms[count++] = {channel + at_z.source + at_y.source + at_x.source, weights(2) + at_x.weight,
                            weights(1) + at_y.weight, weights(0)[at_z.weight]};
        }
      }
    }
    add(terms, count, sums);
  }

  void add(const Term<T>* terms, int count, const Sums<S>& sums) {
    if (call_.stride == 1) {
      sum_rectangle(terms, count, call_.row_stride, sums);
    } else {
      sum_apart(terms, count, call_.row_stride, call_.stride, sums);
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
