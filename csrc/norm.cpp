#include "norm.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "cache.h"
#include "cpu/norm_kernel.h"

namespace tiledattn {
namespace {

// Elements that are worth a thread, and moments.
constexpr int64_t kGrain = 1 << 14, kMomentsGrain = 1 << 12;
// Layouts whose tables are kept.
constexpr size_t kKept = 64;

/// A tile of an axis, and what it counts for.
struct Share {
  int64_t tile;
  double weight;
};

/// What each tile of an axis owns, which lies together.
std::vector<Interval> axis_owned(const Axis& axis) {
  std::vector<Interval> owned(axis_origins(axis).size());
  const std::vector<int64_t> owners = axis_owners(axis);
  int64_t tile = 0;
  for (const int64_t origin : axis_origins(axis)) {
    Interval& own = owned[tile];
    for (int64_t local = 0; local < axis.tile; ++local) {
      if (owners[modulo(origin + local, axis.length)] == tile && own.count++ == 0) own.first = local;
    }
    ++tile;
  }
  return owned;
}

/// How near the tiles at two origins are: 1 for the same, 0 from a distance of two tiles on.
double nearness(const Axis& axis, int64_t a, int64_t b) {
  int64_t apart = std::abs(a - b);
  if (axis.wrap) apart = std::min(apart, axis.length - apart);
  return std::max(0.0, 1.0 - static_cast<double>(apart) / (2.0 * static_cast<double>(axis.tile)));
}

/// Whose moments count in which statistics: a row of shares, which sum to 1, for each tile or, with the scope canvas,
/// one for all.
std::vector<std::vector<Share>> axis_shares(const Axis& axis, const std::vector<Interval>& owned, NormScope scope) {
  const std::vector<int64_t> origins = axis_origins(axis);
  std::vector<std::vector<Share>> shares(scope == NormScope::canvas ? 1 : origins.size());
  for (size_t row = 0; row < shares.size(); ++row) {
    double total = 0.0;
    for (size_t tile = 0; tile < origins.size(); ++tile) {
      const double near = scope == NormScope::canvas ? 1.0 : nearness(axis, origins[row], origins[tile]);
      const double weight = near * static_cast<double>(owned[tile].count);
      if (weight == 0.0) continue;
      shares[row].push_back({static_cast<int64_t>(tile), weight});
      total += weight;
    }
    for (Share& share : shares[row]) share.weight /= total;
  }
  return shares;
}

struct NormTables {
  std::array<std::vector<Interval>, 3> owned;
  std::array<std::vector<std::vector<Share>>, 3> shares;
  std::vector<double> part{1.0};  // of the canvas, which each tile owns
  int64_t statistics = 1;         // how many there are of a batch entry and group

  void set(const Axes& axes, NormScope scope) {
    for (int i = 0; i < 3; ++i) {
      owned[i] = axis_owned(axes[i]);
      shares[i] = axis_shares(axes[i], owned[i], scope);
      statistics *= static_cast<int64_t>(shares[i].size());
      std::vector<double> parts;
      for (const double before : part) {
        for (const Interval& own : owned[i]) {
          parts.push_back(before * static_cast<double>(own.count) / static_cast<double>(axes[i].length));
        }
      }
      part = parts;
    }
  }

  int64_t tiles() const { return static_cast<int64_t>(part.size()); }
};

/// Along an axis of x [outer, tiles, inner]: what each row of shares makes of the tiles.
void sum_axis(const double* x, const std::vector<std::vector<Share>>& shares, int64_t outer, int64_t tiles,
              int64_t inner, double* sums) {
  for (int64_t o = 0; o < outer; ++o) {
    for (const std::vector<Share>& row : shares) {
      std::fill(sums, sums + inner, 0.0);
      for (const Share& share : row) {
        const double* from = x + (o * tiles + share.tile) * inner;
        for (int64_t i = 0; i < inner; ++i) sums[i] += share.weight * from[i];
      }
      sums += inner;
    }
  }
}

/// Means, and variances or what numbers are divided by, of `columns` batch entries' groups: [tiles or fewer, columns].
struct Statistics {
  int64_t columns;
  std::vector<double> mean, spread;

  Statistics(int64_t rows, int64_t columns) : columns(columns), mean(rows * columns), spread(rows * columns) {}
};

/// Doubles that merging takes for a column.
int64_t scratch_of(const NormTables& tables) { return 1 + 4 * tables.tiles(); }

/// Columns [first, last) of the statistics of tiles, merged. About a centre of all tiles: squares of large means would
/// cancel. A number that isn't finite is met by those alone in whose scope it lies.
void merge(const NormTables& tables, const Statistics& tiles, double eps, Statistics& merged, double* scratch,
           int64_t first, int64_t last) {
  const int64_t width = last - first, count = tables.tiles();
  double *centre = scratch + first * scratch_of(tables), *moments = centre + width, *sums = moments + 2 * count * width;
  std::fill(centre, centre + width, 0.0);
  for (int64_t t = 0; t < count; ++t) {
    const double* mean = tiles.mean.data() + t * tiles.columns + first;
    for (int64_t i = 0; i < width; ++i) centre[i] += std::isfinite(mean[i]) ? tables.part[t] * mean[i] : 0.0;
  }
  for (int64_t t = 0; t < count; ++t) {
    const int64_t at = t * tiles.columns + first;
    double* to = moments + t * 2 * width;
    for (int64_t i = 0; i < width; ++i) {
      const double apart = tiles.mean[at + i] - centre[i];
      to[i] = apart, to[width + i] = tiles.spread[at + i] + apart * apart;
    }
  }
  int64_t outer = 1, inner = count * 2 * width;
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t on_axis = static_cast<int64_t>(tables.owned[axis].size());
    inner /= on_axis;
    if (on_axis > 1) {
      sum_axis(moments, tables.shares[axis], outer, on_axis, inner, sums);
      std::swap(moments, sums);
    }
    outer *= static_cast<int64_t>(tables.shares[axis].size());
  }
  for (int64_t row = 0; row < tables.statistics; ++row) {
    const double* from = moments + row * 2 * width;
    const int64_t at = row * merged.columns + first;
    for (int64_t i = 0; i < width; ++i) {
      const double variance = from[width + i] - from[i] * from[i];
      merged.mean[at + i] = centre[i] + from[i];
      merged.spread[at + i] = 1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + eps);
    }
  }
}

NormTiles read(const Axes& axes, ElementType type, const Image& tiles, int64_t groups) {
  NormTiles found{};
  found.source = static_cast<const char*>(tiles.data), found.type = type;
  found.batch = tiles.batch, found.groups = groups, found.depth = tiles.channels / groups;
  found.tile_stride = tiles.tile_stride, found.batch_stride = tiles.batch_stride;
  found.channel_stride = tiles.channel_stride;
  for (int i = 0; i < 3; ++i) {
    found.stride[i] = tiles.stride[i], found.extent[i] = axes[i].tile;
    found.grid[i] = static_cast<int64_t>(axis_origins(axes[i]).size());
  }
  return found;
}

}  // namespace

void group_norm_tiles(const Axes& axes, ElementType type, const Image& tiles, const GroupNorm& norm, void* out,
                      const Parallel& parallel) {
  static Cache<NormTables> cache(kKept);
  std::vector<int64_t> key{static_cast<int64_t>(norm.scope)};
  for (const Axis& axis : axes) key.insert(key.end(), {axis.length, axis.tile, axis.overlap, axis.wrap});
  const auto tables = cache.get(key, [&](NormTables& made) { made.set(axes, norm.scope); });
  const int64_t columns = tiles.batch * norm.groups, items = tables->tiles() * columns;
  if (items == 0 || tiles.channels == 0) return;
  const NormTiles shape = read(axes, type, tiles, norm.groups);
  const int64_t elements = shape.depth * shape.extent[0] * shape.extent[1] * shape.extent[2];
  const int64_t grain = std::max<int64_t>(1, kGrain / elements);

  Statistics of_tiles(tables->tiles(), columns), merged(tables->statistics, columns);
  NormMoments moments{shape, {}, of_tiles.mean.data(), of_tiles.spread.data()};
  for (int i = 0; i < 3; ++i) moments.owned[i] = tables->owned[i].data();
  parallel_for(parallel, items, grain, [&](int64_t first, int64_t last) {
#define TILEDATTN_CALL norm_moments(moments, first, last)
    TILEDATTN_DISPATCH
#undef TILEDATTN_CALL
  });
  const int64_t merge_grain = std::max<int64_t>(1, kMomentsGrain / tables->tiles());
  std::vector<double> scratch(columns * scratch_of(*tables));
  parallel_for(parallel, columns, merge_grain, [&](int64_t first, int64_t last) {
    merge(*tables, of_tiles, norm.eps, merged, scratch.data(), first, last);
  });
  const double *mean = merged.mean.data(), *factor = merged.spread.data();
  const bool shared = tables->statistics == 1;
  const NormScale scale{shape, static_cast<char*>(out), mean, factor, shared, norm.weight, norm.bias};
  parallel_for(parallel, items, grain, [&](int64_t first, int64_t last) {
#define TILEDATTN_CALL norm_scale(scale, first, last)
    TILEDATTN_DISPATCH
#undef TILEDATTN_CALL
  });
}

}  // namespace tiledattn
