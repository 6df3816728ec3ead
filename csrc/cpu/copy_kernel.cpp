#include "cpu/counter.h"
#include "cpu/row_writer.h"
#include "cpu/tiles_kernel.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kGather = 256;  // elements collected at a time where they are not adjacent
constexpr int64_t kAhead = 4;     // rows that are fetched before they are needed: each may lie on a page of its own

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
class Copy {
 public:
  explicit Copy(const CopyRows& call) : call_(call), out_(call.out) {}

  void run(int64_t first, int64_t last) {
    Counter<5> place{{call_.batch, call_.channels, call_.planes, call_.bands, call_.grid[2]}, {}};
    place.seek(first);
    for (int64_t item = first; item < last; ++item, place.next()) {
      const auto [b, c, plane, band, tile_x] = place.at;
      copy_band(b, c, call_.plane[plane], band, tile_x);
    }
    out_.finish();
  }

 private:
  void copy_band(int64_t b, int64_t c, const CopyPlane& plane, int64_t band, int64_t tile_x) {
    const T* channel = reinterpret_cast<const T*>(call_.source) + b * call_.batch_stride + c * call_.channel_stride;
    const int64_t *grid = call_.grid, *extent = call_.extent;
    for (int64_t i = call_.band_start[band]; i < call_.band_start[band + 1]; ++i) {
      const CopyRun& run = call_.runs[i];
      const int64_t tile = (plane.tile * grid[1] + run.tile) * grid[2] + tile_x;
      const int64_t at_z = ((tile * call_.batch + b) * call_.channels + c) * extent[0] + plane.local;
      out_.seek(call_.out + (at_z * extent[1] + run.local) * extent[2] * static_cast<int64_t>(sizeof(T)));
      const bool outside = plane.source == kNothing || run.source == kNothing;
      copy_run(outside ? nullptr : channel + plane.source + run.source, run.rows, tile_x);
    }
  }

  /// `rows` rows of one tile; null brings zeros.
  void copy_run(const T* from, int64_t rows, int64_t tile_x) {
    const RowPiece* piece = call_.pieces + call_.piece_start[tile_x];
    const RowPiece* end = call_.pieces + call_.piece_start[tile_x + 1];
    if (from == nullptr) return out_.append_zeros(rows * call_.extent[2] * sizeof(T));
    if constexpr (!kStream) {
      if (call_.stride == 1) return put_pieces(from, rows, piece, end);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t ahead = row + kAhead < rows ? kAhead * call_.row_stride : 0;
      for (const RowPiece* at = piece; at < end; ++at) append(from + row * call_.row_stride, *at, ahead);
    }
  }

  /// Rows that stay in the first-level cache meanwhile: one piece of all of them after the other.
  void put_pieces(const T* from, int64_t rows, const RowPiece* piece, const RowPiece* end) {
    const int64_t row_bytes = call_.extent[2] * sizeof(T), step = call_.row_stride * sizeof(T);
    for (int64_t at = 0; piece < end; at += piece->length * sizeof(T), ++piece) {
      const char* first = piece->source == kNothing ? nullptr : reinterpret_cast<const char*>(from + piece->source);
      out_.put_rows(rows, row_bytes, at, first, piece->length * sizeof(T), step);
    }
    out_.pass(rows * row_bytes);
  }

  void append(const T* row, const RowPiece& piece, int64_t ahead) {
    const int64_t bytes = piece.length * static_cast<int64_t>(sizeof(T));
    if (piece.source == kNothing) return out_.append_zeros(bytes);
    const T* from = row + piece.source;
    if (call_.stride != 1) return append_apart(from, call_.stride, piece.length, out_);
    if (kStream) prefetch(reinterpret_cast<const char*>(from + ahead), bytes);
    out_.append(reinterpret_cast<const char*>(from), bytes);
  }

  const CopyRows call_;
  RowWriter<kStream> out_;
};

template <typename T>
void copy_any(const CopyRows& call, int64_t first, int64_t last) {
  return call.stream ? Copy<T, true>(call).run(first, last) : Copy<T, false>(call).run(first, last);
}

}  // namespace

void copy_rows(const CopyRows& call, int64_t first, int64_t last) {
  if (call.element_size == 2) return copy_any<uint16_t>(call, first, last);
  if (call.element_size == 4) return copy_any<uint32_t>(call, first, last);
  copy_any<uint64_t>(call, first, last);
}

}  // namespace tiledattn::TILEDATTN_ISA
