#include "cpu/counter.h"
#include "cpu/row_writer.h"
#include "cpu/tiles_kernel.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kGather = 256;  // elements collected at a time where they are not adjacent
constexpr int64_t kAhead = 4;     // rows that are fetched before they are needed: each lies on a page of its own

template <typename T, bool kStream>
void append_apart(const T* from, int64_t stride, int64_t count, RowWriter<kStream>& out) {
  T gathered[kGather];
  for (int64_t done = 0; done < count; done += kGather) {
    const int64_t part = count - done < kGather ? count - done : kGather;
    for (int64_t i = 0; i < part; ++i) gathered[i] = from[(done + i) * stride];
    out.append(reinterpret_cast<const char*>(gathered), part * sizeof(T));
  }
}

template <typename T, bool kStream>
void append_row(const CopyRows& call, const RowPiece* piece, const RowPiece* end, const T* base, int64_t ahead,
                RowWriter<kStream>& out) {
  for (; piece < end; ++piece) {
    const int64_t bytes = piece->length * static_cast<int64_t>(sizeof(T));
    if (base == nullptr || piece->source == kNothing) {
      out.append_zeros(bytes);
      continue;
    }
    const T* from = base + piece->source;
    if (call.stride == 1) {
      if (kStream) prefetch(reinterpret_cast<const char*>(from + ahead), bytes);
      out.append(reinterpret_cast<const char*>(from), bytes);
    } else {
      append_apart(from, call.stride, piece->length, out);
    }
  }
}

/// Rows [y, y_end) of one plane of one tile.
template <typename T, bool kStream>
void append_rows(const CopyRows& call, const T* plane, const int64_t* at_y, int64_t y, int64_t y_end, int64_t tile_x,
                 RowWriter<kStream>& out) {
  const RowPiece* first = call.pieces + call.piece_start[tile_x];
  const RowPiece* last = call.pieces + call.piece_start[tile_x + 1];
  for (; y < y_end; ++y) {
    const bool outside = plane == nullptr || at_y[y] == kNothing;
    const int64_t later = y + kAhead < y_end ? at_y[y + kAhead] : kNothing;
    const int64_t ahead = later == kNothing || outside ? 0 : later - at_y[y];
    append_row<T>(call, first, last, outside ? nullptr : plane + at_y[y], ahead, out);
  }
}

template <typename T, bool kStream>
void copy(const CopyRows& call, int64_t first, int64_t last) {
  const int64_t rows = call.extent[1];
  Counter<6> place{{call.grid[0], call.grid[1], call.grid[2], call.batch, call.channels, call.extent[0]}, {}};
  place.seek(first / rows);
  RowWriter<kStream> out(call.out + first * call.extent[2] * static_cast<int64_t>(sizeof(T)));
  for (int64_t row = first; row < last; place.next()) {
    const auto [tile_z, tile_y, tile_x, b, c, z] = place.at;
    const int64_t at_z = call.offset[0][tile_z * call.extent[0] + z];
    const T* plane = reinterpret_cast<const T*>(call.source) + b * call.batch_stride + c * call.channel_stride;
    const int64_t y = row % rows, y_end = rows < y + last - row ? rows : y + last - row;
    append_rows(call, at_z == kNothing ? nullptr : plane + at_z, call.offset[1] + tile_y * rows, y, y_end, tile_x, out);
    row += y_end - y;
  }
  out.finish();
}

template <typename T>
void copy_any(const CopyRows& call, int64_t first, int64_t last) {
  return call.stream ? copy<T, true>(call, first, last) : copy<T, false>(call, first, last);
}

}  // namespace

void copy_rows(const CopyRows& call, int64_t first, int64_t last) {
  if (call.element_size == 2) return copy_any<uint16_t>(call, first, last);
  if (call.element_size == 4) return copy_any<uint32_t>(call, first, last);
  copy_any<uint64_t>(call, first, last);
}

}  // namespace tiledattn::TILEDATTN_ISA
