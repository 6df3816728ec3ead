#include "cpu/counter.h"
#include "cpu/row_writer.h"
#include "cpu/tiles_kernel.h"
#include "cpu/vec.h"
#include "tiledattn/blending.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kGather = 256;  // elements collected at a time where they are not adjacent
constexpr int64_t kAhead = 2;     // rows that are fetched before they are needed: each lies on a page of its own

inline Vec load_numbers(const float* from, int64_t count) { return load_floats(from, count); }
inline Vec load_numbers(const Half* from, int64_t count) { return from_float16(load_words(from, count)); }
inline Vec load_numbers(const Brain* from, int64_t count) { return from_bfloat16(load_words(from, count)); }

/// sums[i] += scale * weights[i] * x[i] for one vector
template <typename T>
inline void add_vector(const T* x, Vec scale, const float* weights, float* sums) {
  store(sums, fma(scale * load(weights), load_numbers(x, Vec::width), load(sums)));
}

template <typename T>
inline void add(const T* x, float scale, const float* weights, float* sums, int64_t count) {
  constexpr int64_t width = Vec::width;
  const Vec factor = Vec::all(scale);
  int64_t i = 0;
  for (; i + 4 * width <= count; i += 4 * width) {
    add_vector(x + i, factor, weights + i, sums + i);
    add_vector(x + i + width, factor, weights + i + width, sums + i + width);
    add_vector(x + i + 2 * width, factor, weights + i + 2 * width, sums + i + 2 * width);
    add_vector(x + i + 3 * width, factor, weights + i + 3 * width, sums + i + 3 * width);
  }
  for (; i + width <= count; i += width) add_vector(x + i, factor, weights + i, sums + i);
  if (const int64_t rest = count - i; rest > 0) {
    const Vec weight = factor * load_floats(weights + i, rest);
    store_floats(sums + i, fma(weight, load_numbers(x + i, rest), load_floats(sums + i, rest)), rest);
  }
}

inline void add(const double* x, double scale, const double* weights, double* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] = multiply_add(scale * weights[i], x[i], sums[i]);
}

template <typename T>
void add_apart(const T* x, int64_t stride, Accumulator<T> scale, const Accumulator<T>* weights, Accumulator<T>* sums,
               int64_t count) {
  T gathered[kGather];
  for (int64_t done = 0; done < count; done += kGather) {
    const int64_t part = count - done < kGather ? count - done : kGather;
    for (int64_t i = 0; i < part; ++i) gathered[i] = x[(done + i) * stride];
    add(gathered, scale, weights + done, sums + done, part);
  }
}

/// Zeros, up to the next multiple of a vector: `sums` has room. A library's memset takes as long as a tile's row.
inline void clear(float* sums, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::width) store(sums + i, Vec::zero());
}
inline void clear(double* sums, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] = 0.0;
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
  explicit Blend(const BlendRows& call) : call_(call), weights_(static_cast<const S*>(call.weights)) {}

  void run(int64_t first, int64_t last) {
    const int64_t rows = call_.size[1];
    Counter<3> place{{call_.batch, call_.channels, call_.size[0]}, {}};
    place.seek(first / rows);
    RowWriter<kStream> out(call_.out + first * call_.size[2] * static_cast<int64_t>(sizeof(T)));
    for (int64_t row = first; row < last; place.next()) {
      const auto [b, c, z] = place.at;
      const T* plane = reinterpret_cast<const T*>(call_.source) + b * call_.batch_stride + c * call_.channel_stride;
      const int64_t y = row % rows, y_end = rows < y + last - row ? rows : y + last - row;
      for (int64_t at = y; at < y_end; ++at) blend_row(plane, z, at, out);
      row += y_end - y;
    }
    out.finish();
  }

 private:
  using S = Accumulator<T>;

  void blend_row(const T* plane, int64_t z, int64_t y, RowWriter<kStream>& out) {
    for (int64_t begin = 0; begin < call_.size[2]; begin += kBlendBlock) {
      const int64_t count = call_.size[2] - begin < kBlendBlock ? call_.size[2] - begin : kBlendBlock;
      sum_block(plane, z, y, begin / kBlendBlock, count);
      out.append(reinterpret_cast<const char*>(rounded(sums_, buffer_, count)), count * sizeof(T));
    }
  }

  /// A block of a row: the tiles that cover it, in their order.
  void sum_block(const T* plane, int64_t z, int64_t y, int64_t block, int64_t count) {
    const RowTile *first = call_.tiles + call_.tile_start[block], *last = call_.tiles + call_.tile_start[block + 1];
    const Cover *z_end = call_.covers[0] + call_.cover_start[0][z + 1],
                *y_begin = call_.covers[1] + call_.cover_start[1][y],
                *y_end = call_.covers[1] + call_.cover_start[1][y + 1];
    clear(sums_, count);
    for (const Cover* at_z = call_.covers[0] + call_.cover_start[0][z]; at_z < z_end; ++at_z) {
      for (const Cover* at_y = y_begin; at_y < y_end; ++at_y) {
        add_tiles(plane + at_z->offset + at_y->offset, static_cast<S>(at_z->weight) * static_cast<S>(at_y->weight),
                  first, last);
      }
    }
  }

  /// Adds one row of the tiles at a position of z and y to the sums of a block of x.
  void add_tiles(const T* row, S scale, const RowTile* tile, const RowTile* end) {
    const int64_t stride = call_.stride, ahead = kAhead * call_.row_stride;
    for (; tile < end; ++tile) {
      const T* from = row + tile->source;
      const S* weights = weights_ + tile->weight;
      if (stride == 1) {
        if (kStream) prefetch(reinterpret_cast<const char*>(from + ahead), tile->length * sizeof(T));
        add(from, scale, weights, sums_ + tile->target, tile->length);
      } else {
        add_apart(from, stride, scale, weights, sums_ + tile->target, tile->length);
      }
    }
  }

  const BlendRows call_;
  const S* const weights_;
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
