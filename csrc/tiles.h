// Cutting, padding and blending on the CPU: tables from a layout, rows over threads. Knows no torch.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/tiles_kernel.h"
#include "tiledattn/geometry.h"

namespace tiledattn {

/// Axes z, y, x; leading ones that a canvas lacks are a single position.
using Axes = std::array<Axis, 3>;

struct Ring {
  int64_t before = 0, after = 0;
};

/// A canvas [B, C, z, y, x], with `tile_stride` 0, or a tile batch [T, B, C, z, y, x]; strides in elements.
struct Image {
  const void* data;
  int64_t batch, channels;
  int64_t tile_stride, batch_stride, channel_stride;
  std::array<int64_t, 3> stride;
};

int64_t size_of(ElementType type);

/// Canvas to tiles; `out` [T, B, C, *tile] is contiguous.
void extract_tiles(const Axes& axes, ElementType type, const Image& canvas, void* out, const Parallel& parallel);

/// Tiles with rings from the owners; `out` [T, B, C, *(before + tile + after)] is contiguous.
void pad_tiles(const Axes& axes, const std::array<Ring, 3>& rings, ElementType type, const Image& tiles, void* out,
               const Parallel& parallel);

/// Tiles to canvas; `weights` are per axis [tiles on the axis, tile] in the accumulator's type and sum to 1 at every
/// position; null means a single tile's single position. `out` [B, C, *size] is contiguous.
void blend_tiles(const Axes& axes, ElementType type, const Image& tiles, const std::array<const void*, 3>& weights,
                 void* out, const Parallel& parallel);

}  // namespace tiledattn
