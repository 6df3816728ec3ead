#include "cpu/tiles_kernel.h"

#include <cstring>

#include "cpu/vectors.h"
#include "tiledattn/blending.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kBlock = 512;  // positions summed up at a time: their sums stay in the first-level cache

/// The place of a row among nested loops, slowest first; `next` is cheaper than dividing anew.
template <int N>
struct Counter {
  int64_t limit[N], at[N];

  void seek(int64_t row) {
    for (int i = N - 1; i >= 0; --i) {
      at[i] = row % limit[i];
      row /= limit[i];
    }
  }

  void next() {
    for (int i = N - 1; i >= 0 && ++at[i] == limit[i]; --i) at[i] = 0;
  }
};

template <typename T>
void gather(const T* from, int64_t stride, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
}

template <typename T>
void copy_piece(const CopyRows& call, const RowPiece& piece, int64_t base, T* row) {
  T* to = row + piece.target;
  if (base == kNothing || piece.source == kNothing) {
    std::memset(to, 0, piece.length * sizeof(T));
    return;
  }
  const T* from = reinterpret_cast<const T*>(call.source) + base + piece.source;
  if (call.stride != 1) {
    gather(from, call.stride, to, piece.length);
  } else if (call.stream) {
    stream(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), piece.length * sizeof(T));
  } else {
    std::memcpy(to, from, piece.length * sizeof(T));
  }
}

template <typename T>
void copy(const CopyRows& call, int64_t first, int64_t last) {
  Counter<7> place{
      {call.grid[0], call.grid[1], call.grid[2], call.batch, call.channels, call.extent[0], call.extent[1]}, {}};
  place.seek(first);
  T* row = reinterpret_cast<T*>(call.out) + first * call.extent[2];
  for (int64_t i = first; i < last; ++i, row += call.extent[2], place.next()) {
    const auto [tile_z, tile_y, tile_x, b, c, z, y] = place.at;
    const int64_t at_z = call.offset[0][tile_z * call.extent[0] + z];
    const int64_t at_y = call.offset[1][tile_y * call.extent[1] + y];
    const bool outside = at_z == kNothing || at_y == kNothing;
    const int64_t base = outside ? kNothing : b * call.batch_stride + c * call.channel_stride + at_z + at_y;
    for (int64_t p = call.piece_start[tile_x]; p < call.piece_start[tile_x + 1]; ++p) {
      copy_piece(call, call.pieces[p], base, row);
    }
  }
}

/// sums[i] += scale * weights[i] * x[i], or = for the first tile of a position.
template <typename S>
void add(const S* x, S scale, const S* weights, S* sums, int64_t count, bool fresh) {
  if (fresh) {
    for (int64_t i = 0; i < count; ++i) sums[i] = scale * weights[i] * x[i];
  } else {
    for (int64_t i = 0; i < count; ++i) sums[i] = multiply_add(scale * weights[i], x[i], sums[i]);
  }
}

/// `count` elements as numbers to calculate with: in place where they are, else in `buffer`.
template <typename T>
const Accumulator<T>* numbers(const T* from, int64_t stride, Accumulator<T>* buffer, int64_t count) {
  if (stride != 1) {
    T gathered[kBlock];
    gather(from, stride, gathered, count);
    to_numbers(gathered, buffer, count);
    return buffer;
  }
  if constexpr (std::is_same_v<T, Accumulator<T>>) return from;
  to_numbers(from, buffer, count);
  return buffer;
}

template <typename T>
struct Blend {
  using S = Accumulator<T>;

  const BlendRows& call;
  alignas(64) S sums[kBlock];
  alignas(64) S buffer[kBlock];
  alignas(64) T rounded[kBlock];

  /// Positions [begin, end) of one span, from every tile that covers them, in the tiles' order.
  void sum_span(const T* plane, int64_t z, int64_t y, const RowSpan& span, int64_t begin, int64_t end, S* to) {
    bool fresh = true;
    for (int64_t i = call.cover_start[0][z]; i < call.cover_start[0][z + 1]; ++i) {
      for (int64_t j = call.cover_start[1][y]; j < call.cover_start[1][y + 1]; ++j) {
        const Cover &cover_z = call.covers[0][i], &cover_y = call.covers[1][j];
        const S scale = static_cast<S>(cover_z.weight) * static_cast<S>(cover_y.weight);
        for (int64_t k = span.first; k < span.last; ++k) {
          const RowCover& cover = call.row_covers[k];
          const int64_t skipped = begin - span.begin;
          const T* from = plane + cover_z.offset + cover_y.offset + cover.offset + skipped * call.stride;
          const S* x = numbers(from, call.stride, buffer, end - begin);
          add(x, scale, static_cast<const S*>(call.weights) + cover.weight + skipped, to, end - begin, fresh);
          fresh = false;
        }
      }
    }
  }

  void write(T* to, int64_t count) {
    const T* from = from_numbers(sums, rounded, count);
    if (call.stream) {
      stream(reinterpret_cast<char*>(to), reinterpret_cast<const char*>(from), count * sizeof(T));
    } else {
      std::memcpy(to, from, count * sizeof(T));
    }
  }

  void row(const T* plane, int64_t z, int64_t y, T* out) {
    const RowSpan* span = call.spans;
    for (int64_t block = 0; block < call.size[2]; block += kBlock) {
      const int64_t block_end = block + kBlock < call.size[2] ? block + kBlock : call.size[2];
      for (int64_t at = block; at < block_end;) {
        if (span->end <= at) ++span;
        const int64_t end = span->end < block_end ? span->end : block_end;
        sum_span(plane, z, y, *span, at, end, sums + (at - block));
        at = end;
      }
      write(out + block, block_end - block);
    }
  }
};

template <typename T>
void blend(const BlendRows& call, int64_t first, int64_t last) {
  Blend<T> blender{call, {}, {}, {}};
  Counter<4> place{{call.batch, call.channels, call.size[0], call.size[1]}, {}};
  place.seek(first);
  T* row = reinterpret_cast<T*>(call.out) + first * call.size[2];
  for (int64_t i = first; i < last; ++i, row += call.size[2], place.next()) {
    const auto [b, c, z, y] = place.at;
    const T* plane = reinterpret_cast<const T*>(call.source) + b * call.batch_stride + c * call.channel_stride;
    blender.row(plane, z, y, row);
  }
}

}  // namespace

void copy_rows(const CopyRows& call, int64_t first, int64_t last) {
  if (call.element_size == 2) {
    copy<uint16_t>(call, first, last);
  } else if (call.element_size == 4) {
    copy<uint32_t>(call, first, last);
  } else {
    copy<uint64_t>(call, first, last);
  }
  if (call.stream) stream_done();
}

void blend_rows(const BlendRows& call, int64_t first, int64_t last) {
  switch (call.type) {
    case ElementType::float16:
      blend<Half>(call, first, last);
      break;
    case ElementType::bfloat16:
      blend<Brain>(call, first, last);
      break;
    case ElementType::float32:
      blend<float>(call, first, last);
      break;
    case ElementType::float64:
      blend<double>(call, first, last);
      break;
  }
  if (call.stream) stream_done();
}

}  // namespace tiledattn::TILEDATTN_ISA
