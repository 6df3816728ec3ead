// The arguments of the kernels that cut, pad and blend tiles, made from a layout on the host. No CUDA here.
#pragma once

#include "tiledattn/tile_index.h"
#include "tiles.h"

namespace tiledattn::cuda {

/// Entries in device memory, per axis; null for an axis that the canvas lacks.
using PlaceTables = std::array<const AxisPlace*, 3>;

/// out[tiles, batches, rows, extent], contiguous, copied from wherever the tables say, zeros where they say nothing.
struct CopyTiles {
  TileWork work;
  TileSource source;
  char* out;
  const AxisPlace* places[3];  // [tiles on the axis, extent]
  uint32_t extent[3];
  Divisor batches, grid_y, grid_x;
  int vector, element_size;
};

/// out[batches, rows, size], contiguous, the weighted sum of the tiles that cover a position, in the order of the
/// table.
struct BlendTiles {
  TileWork work;
  TileSource source;
  char* out;
  const AxisPlace* covers[3];  // [size, count]
  uint32_t count[3];
  const void* weights[3];  // [tiles on the axis, tile], float or, for double, double
  int vector;
  ElementType type;
};

/// Rows of one vector that a thread serves: many bytes under way, in registers that leave room for many threads.
TILEDATTN_INLINE constexpr int rows_of_copy(int vector_bytes) { return vector_bytes == 16 ? 4 : 8; }
TILEDATTN_INLINE constexpr int rows_of_blend(int vector) { return vector == 8 ? 2 : 4; }

inline int64_t bytes_of(ElementType type) {
  return type == ElementType::float64 ? 8 : type == ElementType::float32 ? 4 : 2;
}

struct Rows {
  int64_t batches, count, stride;  // per batch
};

/// The channels of each batch entry or, where one stride leads through both, all of them at once.
inline Rows rows_of(const Image& image) {
  if (image.channels == 1) return {1, image.batch, image.batch_stride};
  const bool even = image.batch == 1 || image.batch_stride == image.channels * image.channel_stride;
  if (even) return {1, image.batch * image.channels, image.channel_stride};
  return {image.batch, image.channels, image.channel_stride};
}

/// What is read: a canvas as a grid of one tile, or tiles.
inline TileSource read_source(const Image& image, ElementType type, const std::array<int64_t, 3>& grid,
                              const std::array<int64_t, 3>& extent) {
  const int64_t bytes = bytes_of(type);
  TileSource source{};
  source.data = static_cast<const char*>(image.data);
  source.tile_stride = image.tile_stride * bytes;
  const Rows rows = rows_of(image);
  source.batch_stride = image.batch_stride * bytes, source.row_stride = rows.stride * bytes;
  for (int axis = 0; axis < 3; ++axis) {
    source.grid[axis] = static_cast<uint32_t>(grid[axis]), source.extent[axis] = static_cast<uint32_t>(extent[axis]);
    source.stride[axis] = image.stride[axis] * bytes;
  }
  return source;
}

/// Elements of one access; whatever `unit` says, lines of the source and of the result hold a whole number of them.
inline int limited_width(const TileSource& source, const void* out, int64_t length, int64_t unit, int64_t bytes,
                         const TileLimits& limits) {
  const int64_t whole = std::gcd(length, static_cast<int64_t>(source.extent[2]));
  int width = vector_width(source, out, std::gcd(unit, whole), bytes);
  while (width > limits.vector) width /= 2;
  return width;
}

inline std::array<int64_t, 3> lengths_of(const Axes& axes) { return {axes[0].length, axes[1].length, axes[2].length}; }
inline std::array<int64_t, 3> tiles_of(const Axes& axes) { return {axes[0].tile, axes[1].tile, axes[2].tile}; }
inline std::array<int64_t, 3> grid_of(const Axes& axes) {
  return {axis_tiles(axes[0]), axis_tiles(axes[1]), axis_tiles(axes[2])};
}

inline const char* make_copy(CopyTiles& call, const Axes& axes, const std::array<int64_t, 3>& extent, ElementType type,
                             const Image& image, const PlaceTables& places, int64_t unit, void* out,
                             const TileLimits& limits) {
  const int64_t bytes = bytes_of(type);
  const std::array<int64_t, 3> grid = grid_of(axes);
  call.out = static_cast<char*>(out);
  call.grid_y = divisor(grid[1]), call.grid_x = divisor(grid[2]);
  for (int axis = 0; axis < 3; ++axis) {
    call.places[axis] = places[axis], call.extent[axis] = static_cast<uint32_t>(extent[axis]);
  }
  call.element_size = static_cast<int>(bytes);
  call.vector = limited_width(call.source, out, extent[2], unit, bytes, limits);
  const Rows rows = rows_of(image);
  call.batches = divisor(rows.batches);
  return deal_out(call.work, grid[0] * grid[1] * grid[2] * rows.batches, rows.count, extent[0], extent[1],
                  extent[2] / call.vector, rows_of_copy(call.vector * call.element_size), 4, limits);
}

/// Canvas to tiles: `places` [tiles on the axis, tile] are canvas positions of tile 0. No result may be empty. `unit`
/// divides all that is between ends of runs in source and result, along x.
///
/// Returns null, or what is wrong with it; so do the others.
inline const char* make_extract(CopyTiles& call, const Axes& axes, ElementType type, const Image& canvas,
                                const PlaceTables& places, int64_t unit, void* out, const TileLimits& limits = {}) {
  call.source = read_source(canvas, type, {1, 1, 1}, lengths_of(axes));
  return make_copy(call, axes, tiles_of(axes), type, canvas, places, unit, out, limits);
}

/// Tiles with rings: `places` [tiles on the axis, before + tile + after] are tiles and positions inside them.
inline const char* make_pad(CopyTiles& call, const Axes& axes, const std::array<Ring, 3>& rings, ElementType type,
                            const Image& tiles, const PlaceTables& places, int64_t unit, void* out,
                            const TileLimits& limits = {}) {
  call.source = read_source(tiles, type, grid_of(axes), tiles_of(axes));
  std::array<int64_t, 3> extent = tiles_of(axes);
  for (int axis = 0; axis < 3; ++axis) extent[axis] += rings[axis].before + rings[axis].after;
  return make_copy(call, axes, extent, type, tiles, places, unit, out, limits);
}

/// Tiles to canvas: `covers` [size, count] are tiles, ascending, and positions inside them; `weights` are aligned to 16
/// bytes or to one number.
inline const char* make_blend(BlendTiles& call, const Axes& axes, ElementType type, const Image& tiles,
                              const PlaceTables& covers, const std::array<int64_t, 3>& count, int64_t unit,
                              const std::array<const void*, 3>& weights, void* out, const TileLimits& limits = {}) {
  const int64_t bytes = bytes_of(type);
  const std::array<int64_t, 3> size = lengths_of(axes);
  call.source = read_source(tiles, type, grid_of(axes), tiles_of(axes));
  call.out = static_cast<char*>(out), call.type = type;
  for (int axis = 0; axis < 3; ++axis) {
    call.covers[axis] = covers[axis], call.weights[axis] = weights[axis];
    call.count[axis] = static_cast<uint32_t>(count[axis]);
  }
  call.vector = limited_width(call.source, out, size[2], unit, bytes, limits);
  if (reinterpret_cast<uintptr_t>(weights[2]) % 16 != 0) call.vector = 1;
  const Rows rows = rows_of(tiles);
  return deal_out(call.work, rows.batches, rows.count, size[0], size[1], size[2] / call.vector,
                  rows_of_blend(call.vector), 1, limits);
}

}  // namespace tiledattn::cuda
