#include <type_traits>

#include "cpu/blend_rows.h"
#include "cpu/counter.h"
#include "cpu/row_writer.h"
#include "cpu/tiles_kernel.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kAhead = 8;  // rows that are fetched ahead where nothing is in the caches

/// Sums rounded to elements: where they are if there is nothing to round, else in `buffer`.
inline const float* rounded(const float* sums, float*, int64_t) { return sums; }
inline const double* rounded(const double* sums, double*, int64_t) { return sums; }

template <typename T>
inline const T* rounded(const float* sums, T* buffer, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::width) put_numbers(buffer + i, load_floats(sums + i, count - i), count - i);
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
      if (written_at_once(out, call_.runs[0][z], rows)) {
        sum_band<kStream && kByLines>(channel, call_.runs[0][z], rows, block, out, call_.size[2]);
      } else {
        sum_band<false>(channel, call_.runs[0][z], rows, block, sums_, length);
        write(out, rows.length, length);
      }
    }
    out_.finish();
  }

 private:
  using S = Accumulator<T>;

  /// Whether registers take whole lines of elements at a time.
  static constexpr bool kByLines = !std::is_same_v<T, double> && kMost * Vec::width * sizeof(T) >= kLine;

  /// Whether a band's elements are ready when they are written for the first time, line by line of `out` where they go
  /// past the caches.
  bool written_at_once(const T* out, const CoveredRun& z, const CoveredRun& y) const {
    const int64_t layers = (z.last_cover - z.first_cover) * (y.last_cover - y.first_cover);
    const bool complete = layers <= kBlendLayers && call_.few_on_x;
    if constexpr (kStream) {
      return kByLines && complete && call_.whole_lines && reinterpret_cast<intptr_t>(out) % kLine == 0;
    }
    return complete || std::is_same_v<T, S>;
  }

  /// The rows of a band in a block of x: `row` elements of `sums` from one to the next. Two rows of tiles at a time.
  template <bool kPast, typename To>
  void sum_band(const T* channel, const CoveredRun& z, const CoveredRun& y, int64_t block, To* sums, int64_t row) {
    const CoveredRun *first = call_.runs[2] + call_.block_start[block],
                     *end = call_.runs[2] + call_.block_start[block + 1];
    const int64_t on_y = y.last_cover - y.first_cover, most = (z.last_cover - z.first_cover) * on_y;
    for (int64_t done = 0; done < most; done += kBlendLayers) {
      Layers<T> layers = {};
      layers.count = static_cast<int>(most - done < kBlendLayers ? most - done : kBlendLayers);
      layers.weights = weights(2);
      layers.ahead = kAhead * call_.row_stride;
      for (int i = 0; i < layers.count; ++i) {
        const Cover& at_z = call_.covers[0][z.first_cover + (done + i) / on_y];
        const Cover& at_y = call_.covers[1][y.first_cover + (done + i) % on_y];
        for (int64_t r = 0; r < y.length; ++r) scales_[i][r] = weights(0)[at_z.weight] * weights(1)[at_y.weight + r];
        layers.rows[i] = channel + at_z.source + at_y.source;
      }
      for (const CoveredRun* x = first; x < end; ++x) {
        To* to = sums + x->begin - first->begin;
        sum<kPast, To>(layers, *x, {to, row, y.length, x->length, {scales_[0], scales_[1]}, done > 0});
      }
    }
  }

  /// A run of x in some rows of tiles: the tiles that cover it, in their order.
  template <bool kPast, typename To>
  void sum(const Layers<T>& layers, const CoveredRun& x, Sums<To, S> sums) {
    for (int64_t first = x.first_cover; first < x.last_cover; first += kBlendTerms, sums.started = true) {
      const int64_t rest = x.last_cover - first;
      const Places places{call_.covers[2] + first, rest < kBlendTerms ? rest : kBlendTerms};
      if (call_.stride == 1) {
        sum_rectangle<kPast>(layers, places, call_.row_stride, sums);
      } else {
        sum_apart(layers, places, call_.row_stride, call_.stride, sums);
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
  S scales_[kBlendLayers][kBlendRows];
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
