// Kernels that cut, pad and blend tiles. Where elements come from and go to stands in tables, one per axis; an
// element's offset is the sum of one entry of each. All offsets are in elements.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/instruction_sets.h"

namespace tiledattn {

enum class ElementType : int32_t { float16, bfloat16, float32, float64 };

/// In place of an offset: nothing lies there, zeros.
constexpr int64_t kNothing = std::numeric_limits<int64_t>::min();

/// Position `local` on z of the tiles at `tile`, and where it comes from.
struct CopyPlane {
  int64_t tile, local, source;
};

/// Positions on y of the tiles at `tile`, from `local` on; the first comes from `source`, the others from the rows
/// that follow there.
struct CopyRun {
  int64_t tile, local, rows, source;
};

/// The next `length` elements of a row, from `source` on.
struct RowPiece {
  int64_t source, length;
};

/// A tile batch out[grid..., B, C, extent...], contiguous, copied from wherever its rows come from. Items are
/// [B, C, planes, bands, tiles on x]; those that read the same memory follow one another.
struct CopyRows {
  const char* source;
  char* out;
  int64_t element_size;
  int64_t batch, channels;
  int64_t batch_stride, channel_stride, row_stride, stride;
  int64_t grid[3], extent[3];  // axes z, y, x
  int64_t planes, bands;
  const CopyPlane* plane;
  const CopyRun* runs;
  const int64_t* band_start;   // of runs, [bands + 1]
  const RowPiece* pieces;      // of x, by tile
  const int64_t* piece_start;  // [grid + 1]
  bool stream;                 // past the caches
};

/// One of the tiles that cover a place on an axis: where the place's first position lies in it, and its weight.
struct Cover {
  int64_t source, weight;
};

/// Positions [begin, begin + length) of an axis, which the tiles covers[first_cover ... last_cover) cover.
struct CoveredRun {
  int64_t begin, length, first_cover, last_cover;
};

/// What an item has at most: positions of x and rows of y.
constexpr int64_t kBlendBlock = 2048, kBlendRows = 32;
/// What is weighed by row at a time: tiles next to one another, in so many rows of tiles.
constexpr int kBlendTerms = 16, kBlendLayers = 2;

/// A canvas out[B, C, size...], contiguous, blended from tiles. Items are [B, C, size z, bands, blocks]; z's runs have
/// one position each, y's are bands of rows that the same tiles cover.
struct BlendRows {
  const char* source;
  char* out;
  ElementType type;
  int64_t batch, channels;
  int64_t batch_stride, channel_stride, row_stride, stride;
  int64_t size[3];  // axes z, y, x
  int64_t bands, blocks;
  const CoveredRun* runs[3];
  const Cover* covers[3];
  const int64_t* block_start;  // of x's runs, [blocks + 1]
  const void* weights[3];      // in the accumulator's type
  bool stream;                 // past the caches
  bool few_on_x;               // elements are adjacent, or no more than kBlendTerms tiles cover a run of x
  bool whole_lines;            // runs of x and rows begin and end at multiples of 64 bytes, if the result does
};

/// Items [first, last) of a call.
#define TILEDATTN_DECLARE_TILES(isa)                                   \
  namespace isa {                                                      \
  void copy_rows(const CopyRows& call, int64_t first, int64_t last);   \
  void blend_rows(const BlendRows& call, int64_t first, int64_t last); \
  }
TILEDATTN_FOR_EACH_ISA(TILEDATTN_DECLARE_TILES)
#undef TILEDATTN_DECLARE_TILES

}  // namespace tiledattn
