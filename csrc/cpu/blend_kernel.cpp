#include <type_traits>

#include "cpu/blend_rows.h"
#include "cpu/counter.h"
#include "cpu/row_writer.h"
#include "cpu/tiles_kernel.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

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
      const auto [b, c, z, number, block] = place.at;
      const Band band{reinterpret_cast<const T*>(call_.source) + b * call_.batch_stride + c * call_.channel_stride,
                      call_.runs[0][z], call_.runs[1][number], block};
      const int64_t begin = block * kBlendBlock;
      const int64_t length = call_.size[2] - begin < kBlendBlock ? call_.size[2] - begin : kBlendBlock;
      const int64_t at_z = ((b * call_.channels + c) * call_.size[0] + z) * call_.size[1];
      T* out = reinterpret_cast<T*>(call_.out) + (at_z + band.y.begin) * call_.size[2] + begin;
      if (written_at_once(out, band)) {
        sum<kStream && kVectors>(band, 0, band.y.length, out, call_.size[2]);
        continue;
      }
      const int64_t most = kBlendBlock / length;
      for (int64_t row = 0, rows; row < band.y.length; row += rows, out += rows * call_.size[2]) {
        rows = band.y.length - row < most ? band.y.length - row : most;
        if (summed_at_once(band)) {
          sum<false>(band, row, rows, buffer_, length);
          write(out, buffer_, rows, length);
        } else {
          sum<false>(band, row, rows, sums_, length);
          write(out, rounded(sums_, buffer_, rows * length), rows, length);
        }
      }
    }
    out_.finish();
  }

 private:
  using S = Accumulator<T>;

  /// Rows of y of a channel and a plane z, in a block of x.
  struct Band {
    const T* channel;
    CoveredRun z, y;
    int64_t block;
  };

  /// Whether sums are made in vectors, which can go past the caches.
  static constexpr bool kVectors = !std::is_same_v<T, double>;

  /// Whether sums are ready, and can be rounded, when they leave the registers.
  bool summed_at_once(const Band& band) const {
    const CoveredRun &z = band.z, &y = band.y;
    return (z.last_cover - z.first_cover) * (y.last_cover - y.first_cover) <= kBlendLayers && call_.few_on_x;
  }

  /// Whether sums go straight to `out`: past the caches only in whole lines.
  bool written_at_once(const T* out, const Band& band) const {
    if constexpr (!kStream) return std::is_same_v<T, S> || summed_at_once(band);
    const bool lines = call_.whole_lines && reinterpret_cast<intptr_t>(out) % kLine == 0;
    return kVectors && call_.stride == 1 && lines && summed_at_once(band);
  }

  /// Some rows of a band, `step` elements of `sums` from one to the next. Two rows of tiles at a time.
  template <bool kPast, typename To>
  void sum(const Band& band, int64_t row, int64_t rows, To* sums, int64_t step) {
    const CoveredRun &z = band.z, &y = band.y;
    const CoveredRun *first = call_.runs[2] + call_.block_start[band.block],
                     *last = call_.runs[2] + call_.block_start[band.block + 1];
    const int64_t on_y = y.last_cover - y.first_cover, most = (z.last_cover - z.first_cover) * on_y;
    for (int64_t done = 0; done < most; done += kBlendLayers) {
      Layers<T> layers = {};
      layers.count = static_cast<int>(most - done < kBlendLayers ? most - done : kBlendLayers);
      layers.weights = weights(2);
      for (int i = 0; i < layers.count; ++i) {
        const Cover& at_z = call_.covers[0][z.first_cover + (done + i) / on_y];
        const Cover& at_y = call_.covers[1][y.first_cover + (done + i) % on_y];
        const S *of_z = weights(0) + at_z.weight, *of_y = weights(1) + at_y.weight + row;
        for (int64_t r = 0; r < rows; ++r) scales_[i][r] = *of_z * of_y[r];
        layers.rows[i] = band.channel + at_z.source + at_y.source + row * call_.row_stride;
      }
      const Sums<To, S> into{sums, step, rows, {scales_[0], scales_[1]}, done > 0};
      if (call_.stride == 1) {
        sum_rows<kPast>(layers, first, last, call_.covers[2], call_.row_stride, into);
      } else {
        sum_rows_apart(layers, first, last, into);
      }
    }
  }

  /// The same of elements that are not adjacent on x.
  template <typename To>
  void sum_rows_apart(const Layers<T>& layers, const CoveredRun* first, const CoveredRun* last, Sums<To, S> sums) {
    for (; first < last; sums.to += first->length, ++first) {
      Sums<To, S> part = sums;
      CoveredRun some = *first;
      for (; some.first_cover < first->last_cover; some.first_cover = some.last_cover, part.started = true) {
        const int64_t rest = first->last_cover - some.first_cover;
        some.last_cover = some.first_cover + (rest < kBlendTerms ? rest : kBlendTerms);
        sum_apart(layers, some, call_.covers[2], call_.row_stride, call_.stride, part);
      }
    }
  }

  void write(T* out, const T* from, int64_t rows, int64_t length) {
    for (int64_t row = 0; row < rows; ++row, out += call_.size[2], from += length) {
      out_.seek(reinterpret_cast<char*>(out));
      out_.append(reinterpret_cast<const char*>(from), length * sizeof(T));
    }
  }

  const S* weights(int axis) const { return static_cast<const S*>(call_.weights[axis]); }

  const BlendRows call_;
  RowWriter<kStream> out_;
  S scales_[kBlendLayers][kBlendRows];
  alignas(64) S sums_[kBlendBlock];
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
