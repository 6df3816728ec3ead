// Group norms of tiles on the CPU: each tile's moments, merged over a scope, and tiles scaled by them. Knows no torch.
#pragma once

#include "tiles.h"

namespace tiledattn {

/// Whose positions count: each tile's own ones as often as the tile is near, or all of the canvas, each once.
enum class NormScope : int64_t { neighbours, canvas };

/// `weight` and `bias` are elements [C], or null. `out` [T, B, C, *tile] is contiguous.
struct GroupNorm {
  int64_t groups;  // divides the channels
  const void *weight, *bias;
  double eps;
  NormScope scope;
};

void group_norm_tiles(const Axes& axes, ElementType type, const Image& tiles, const GroupNorm& norm, void* out,
                      const Parallel& parallel);

}  // namespace tiledattn
