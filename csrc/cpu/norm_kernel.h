// Kernels of group norms of tiles: moments of what each tile owns, and numbers scaled by given ones.
#pragma once

#include <cstdint>

#include "cpu/tiles_kernel.h"

namespace tiledattn {

/// Positions [first, first + count) of a tile on an axis.
struct Interval {
  int64_t first, count;
};

/// A tile batch [T, B, C, z, y, x] of any strides, C in `groups` groups of `depth` channels. Items are [T, B, groups].
struct NormTiles {
  const char* source;
  ElementType type;
  int64_t batch, groups, depth;
  int64_t tile_stride, batch_stride, channel_stride, stride[3];  // axes z, y, x
  int64_t grid[3], extent[3];
};

/// Mean and variance [T, B, groups] of the positions that a tile owns: a box, the product of intervals on each axis.
/// Zeros where it owns none.
struct NormMoments {
  NormTiles tiles;
  const Interval* owned[3];  // by the tile's place on the axis
  double *mean, *variance;
};

/// (x - mean) * scale * weight + bias to `out`, contiguous. Mean and scale are [T, B, groups], or [B, groups] with
/// `shared`; weight and bias are elements [C], or null.
struct NormScale {
  NormTiles tiles;
  char* out;
  const double *mean, *scale;
  bool shared;
  const void *weight, *bias;
};

/// Items [first, last) of a call.
#define TILEDATTN_DECLARE_NORM(isa)                                        \
  namespace isa {                                                          \
  void norm_moments(const NormMoments& call, int64_t first, int64_t last); \
  void norm_scale(const NormScale& call, int64_t first, int64_t last);     \
  }
TILEDATTN_FOR_EACH_ISA(TILEDATTN_DECLARE_NORM)
#undef TILEDATTN_DECLARE_NORM

}  // namespace tiledattn
