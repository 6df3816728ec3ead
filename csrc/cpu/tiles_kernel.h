// Kernels that cut, pad and blend tiles, row by row: a row is a run of the last axis. Which elements a row is made of
// stands in tables, one per axis; an element's offset is the sum of one entry of each.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/instruction_sets.h"

namespace tiledattn {

enum class ElementType : int32_t { float16, bfloat16, float32, float64 };

/// In place of an offset: nothing lies there, zeros.
constexpr int64_t kNothing = std::numeric_limits<int64_t>::min();

/// The next `length` elements of a row, from `source` on; all offsets are in elements.
struct RowPiece {
  int64_t source, length;
};

/// A tile batch out[grid..., B, C, extent...], contiguous, copied from wherever its rows come from.
struct CopyRows {
  const char* source;
  char* out;
  int64_t element_size;
  int64_t batch, channels;
  int64_t batch_stride, channel_stride, stride;
  int64_t grid[3], extent[3];  // axes z, y, x
  const int64_t* offset[2];    // of z and y: [grid, extent], or kNothing
  const RowPiece* pieces;      // of x, by tile
  const int64_t* piece_start;  // [grid + 1]
  bool stream;                 // past the caches
};

/// A tile that covers a position of z or y.
struct Cover {
  int64_t offset;
  double weight;
};

/// Part of a tile along x: the next `length` elements from `source` on belong to positions from `target` on of a
/// block; `weight` is the place of the first one's weight.
struct RowTile {
  int64_t source, weight, target, length;
};

/// Positions of x that are summed up at a time: their sums stay in the first-level cache.
constexpr int64_t kBlendBlock = 2048;

/// A canvas out[B, C, size...], contiguous, blended from tiles.
struct BlendRows {
  const char* source;
  char* out;
  ElementType type;
  int64_t batch, channels;
  int64_t batch_stride, channel_stride, row_stride, stride;
  int64_t size[3];                // axes z, y, x
  const Cover* covers[2];         // of z and y, by position, ascending
  const int64_t* cover_start[2];  // [size + 1]
  const RowTile* tiles;           // of x, by block, ascending
  const int64_t* tile_start;      // [blocks + 1]
  const void* weights;            // of x, in the accumulator's type
  bool stream;
};

/// Rows [first, last) of all that a call has, in the order of `out`.
#define TILEDATTN_DECLARE_TILES(isa)                                   \
  namespace isa {                                                      \
  void copy_rows(const CopyRows& call, int64_t first, int64_t last);   \
  void blend_rows(const BlendRows& call, int64_t first, int64_t last); \
  }
TILEDATTN_FOR_EACH_ISA(TILEDATTN_DECLARE_TILES)
#undef TILEDATTN_DECLARE_TILES

}  // namespace tiledattn
