// Which element of a source stands behind an element of a result: what kernels that write every result once compute
// from the numbers of their blocks and threads. For CPU and CUDA sources alike.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tiledattn/blending.h"
#include "tiledattn/geometry.h"

namespace tiledattn {

/// Position `local` of tile `tile` of an axis, an entry of a kernel's tables; tile -1 where there is none.
struct AxisPlace {
  int32_t tile, local;
};

/// Division of 0 <= n < 2^31 by a constant of the same range, by a multiplication.
struct Divisor {
  uint32_t value = 1, multiplier = 1, shift = 0;
};

inline Divisor divisor(int64_t value) {
  Divisor found;
  found.value = static_cast<uint32_t>(value);
  while ((uint64_t{1} << found.shift) < found.value) ++found.shift;
  const uint64_t excess = (uint64_t{1} << found.shift) - found.value;
  found.multiplier = static_cast<uint32_t>((excess << 32) / found.value + 1);
  return found;
}

TILEDATTN_INLINE uint32_t quotient(const Divisor& by, uint32_t n) {
  const uint32_t high = static_cast<uint32_t>(static_cast<uint64_t>(n) * by.multiplier >> 32);
  return (high + n) >> by.shift;
}

/// How results [outer, rows, lines, width] are dealt out to blocks of threads: a line is a position of z and y, and
/// width counts vectors, the runs of x that one access moves. A thread serves `repeat` rows of one vector. Blocks are
/// [grid_x, grid_y], their threads [across, down].
struct TileWork {
  Divisor chunks, row_blocks;   // of a group of lines, of the rows
  Divisor height, width;        // lines of z, vectors of a line
  uint32_t rows, lines, group;  // lines that blocks of one blockIdx.y serve
  uint32_t across, down, repeat;
  uint32_t grid_x, grid_y;
};

/// What one thread serves: a vector of one result, and rows `row`, `row + down`, ...
struct TileSpot {
  uint32_t outer, row, z, y, x;  // x in vectors
  uint32_t line;
  bool inside;
};

/// What tests lower: elements of one access, threads of a block, and threads that are enough for the largest GPU.
struct TileLimits {
  int64_t vector = 16, threads = 256, many = int64_t{1} << 21;
};

/// Deals out `outer` results of `rows` rows, z x y lines and `width` vectors; a thread serves `unroll` rows or, of
/// large results, up to `most` (a power of two) times as many.
///
/// Returns null, or what is wrong with it.
inline const char* deal_out(TileWork& work, int64_t outer, int64_t rows, int64_t z, int64_t y, int64_t width,
                            int64_t unroll, int64_t most, const TileLimits& limits) {
  constexpr int64_t kMost = int64_t{1} << 30;  // leaves room for the last block's idle threads
  constexpr int64_t kMostBlocksY = 65535;
  if (width > kMost || rows > kMost || z > kMost || y > kMost || z * y > kMost) {
    return "more than 2^30 rows, lines or vectors of a line";
  }
  const int64_t lines = z * y;
  const int64_t group = std::min(lines, kMost / width);
  const auto ceil_divide = [](int64_t n, int64_t by) { return (n + by - 1) / by; };
  int64_t across = 32;
  while (across < limits.threads && across < group * width) across *= 2;
  int64_t down = 1, repeat = unroll;
  while (across * down < limits.threads && down * unroll < rows) down *= 2;
  const int64_t chunks = ceil_divide(group * width, across), grid_y = ceil_divide(lines, group);
  const auto row_blocks = [&] { return ceil_divide(rows, down * repeat); };
  const auto overflows = [&] {
    return row_blocks() > INT32_MAX / chunks || outer > INT32_MAX / (chunks * row_blocks());
  };
  while (repeat < most * unroll && (overflows() || chunks * row_blocks() * outer * across * down > limits.many))
    repeat *= 2;
  if (grid_y > kMostBlocksY || overflows()) return "more than 2^31 - 1 blocks of threads";
  work.chunks = divisor(chunks), work.row_blocks = divisor(row_blocks());
  work.height = divisor(y), work.width = divisor(width);
  const auto narrow = [](int64_t value) { return static_cast<uint32_t>(value); };
  work.rows = narrow(rows), work.lines = narrow(lines), work.group = narrow(group);
  work.across = narrow(across), work.down = narrow(down), work.repeat = narrow(repeat);
  work.grid_x = narrow(chunks * row_blocks() * outer), work.grid_y = narrow(grid_y);
  return nullptr;
}

TILEDATTN_INLINE TileSpot spot_of(const TileWork& work, uint32_t block_x, uint32_t block_y, uint32_t thread_x,
                                  uint32_t thread_y) {
  TileSpot spot;
  const uint32_t block = quotient(work.chunks, block_x);
  spot.outer = quotient(work.row_blocks, block);
  spot.row = (block - spot.outer * work.row_blocks.value) * work.down * work.repeat + thread_y;
  const uint32_t position = (block_x - block * work.chunks.value) * work.across + thread_x;
  const uint32_t line = quotient(work.width, position);
  spot.x = position - line * work.width.value;
  spot.line = block_y * work.group + line;
  spot.inside = line < work.group && spot.line < work.lines && spot.row < work.rows;
  spot.z = quotient(work.height, spot.line);
  spot.y = spot.line - spot.z * work.height.value;
  return spot;
}

/// Where the vector of a thread's first row lies in the contiguous result, in vectors.
TILEDATTN_INLINE int64_t result_offset(const TileWork& work, const TileSpot& spot) {
  const int64_t line = (static_cast<int64_t>(spot.outer) * work.rows + spot.row) * work.lines + spot.line;
  return line * work.width.value + spot.x;
}

/// From one row of a thread to its next, in vectors.
TILEDATTN_INLINE int64_t result_step(const TileWork& work) {
  return static_cast<int64_t>(work.down) * work.lines * work.width.value;
}

/// Canvas or tiles [tiles, batches, rows, z, y, x] that are read; a canvas is a grid of one tile. Strides in bytes.
/// Rows are channels, or batch entries and channels together where one stride leads through both.
struct TileSource {
  const char* data;
  uint32_t grid[3], extent[3];
  int64_t tile_stride, batch_stride, row_stride, stride[3];
};

/// Whether an aligned run of `vector` positions lies in the source from a place on: a table's mistake must not read
/// foreign memory. `vector` is a power of two that divides the axis's extent.
TILEDATTN_INLINE bool holds(const TileSource& source, int axis, AxisPlace place, uint32_t vector) {
  const uint32_t local = static_cast<uint32_t>(place.local);
  return static_cast<uint32_t>(place.tile) < source.grid[axis] && local < source.extent[axis] &&
         (local & (vector - 1)) == 0;
}

TILEDATTN_INLINE int64_t place_offset(const TileSource& source, AxisPlace z, AxisPlace y, AxisPlace x) {
  const int64_t tile = (static_cast<int64_t>(z.tile) * source.grid[1] + y.tile) * source.grid[2] + x.tile;
  return tile * source.tile_stride + z.local * source.stride[0] + y.local * source.stride[1] +
         x.local * source.stride[2];
}

/// How many elements one access of at most 16 bytes may move: a power of two that divides `unit`, with the data aligned
/// to it at both ends and in every stride but the last, which must be one element.
inline int vector_width(const TileSource& source, const void* out, int64_t unit, int64_t element_size) {
  if (source.stride[2] != element_size) return 1;
  int64_t all = reinterpret_cast<intptr_t>(source.data) | reinterpret_cast<intptr_t>(out);
  all |= source.tile_stride | source.batch_stride | source.row_stride | source.stride[0] | source.stride[1];
  int64_t width = 16 / element_size;
  while (width > 1 && (unit % width != 0 || all % (width * element_size) != 0)) width /= 2;
  return static_cast<int>(width);
}

/// The number of tiles on an axis.
inline int64_t axis_tiles(const Axis& axis) {
  if (axis.tile == axis.length) return 1;
  const int64_t step = axis.tile - axis.overlap, rest = axis.wrap ? axis.length : axis.length - axis.tile;
  return (rest + step - 1) / step + (axis.wrap ? 0 : 1);
}

}  // namespace tiledattn
