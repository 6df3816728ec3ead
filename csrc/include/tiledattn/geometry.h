// One axis of a layout: origins, owners, rings and covers, from ints. The words and rules are those of
// tiledattn/geometry/axis.py; everything on a canvas of several axes is a product of these.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace tiledattn {

struct Axis {
  int64_t length = 1, tile = 1, overlap = 0;
  bool wrap = false;
};

/// A run of positions that come from one tile: `source` lends `length` positions from its `start` on; they lie at
/// `offset` from the borrowing tile's origin (negative: before it).
struct Segment {
  int64_t source, start, length, offset;
};

/// Position `local` of tile `tile`.
struct Place {
  int64_t tile, local;
};

/// Canvas positions [begin, end) that the same tiles cover; `first` holds where `begin` lies in each, ascending.
struct Span {
  int64_t begin, end;
  std::vector<Place> first;
};

inline int64_t modulo(int64_t value, int64_t length) {
  const int64_t rest = value % length;
  return rest < 0 ? rest + length : rest;
}

/// What is wrong with an axis, or null.
inline const char* axis_error(const Axis& axis) {
  if (axis.length < 1) return "size must be at least 1";
  if (axis.tile < 1 || axis.tile > axis.length) return "tile must be between 1 and size";
  if (axis.overlap < 0 || axis.overlap >= axis.tile) return "overlap must be between 0 and tile - 1";
  return nullptr;
}

/// Origins of the tiles, ascending.
inline std::vector<int64_t> axis_origins(const Axis& axis) {
  std::vector<int64_t> origins;
  const int64_t step = axis.tile - axis.overlap;
  if (axis.tile == axis.length) {
    origins.push_back(0);
  } else if (axis.wrap) {
    const int64_t count = (axis.length + step - 1) / step;
    const int64_t unit = std::gcd(std::gcd(axis.length, axis.tile), axis.overlap);
    for (int64_t i = 0; i < count; ++i) origins.push_back(unit * (i * (axis.length / unit) / count));
  } else {
    for (int64_t origin = 0; origin + axis.tile <= axis.length; origin += step) origins.push_back(origin);
    if (origins.back() + axis.tile < axis.length) origins.push_back(axis.length - axis.tile);
  }
  return origins;
}

/// The tile in which each position lies deepest (ties: the lower index).
inline std::vector<int64_t> axis_owners(const Axis& axis) {
  std::vector<int64_t> owner(axis.length, 0), best(axis.length, -1);
  const std::vector<int64_t> origins = axis_origins(axis);
  for (int64_t tile = 0; tile < static_cast<int64_t>(origins.size()); ++tile) {
    for (int64_t local = 0; local < axis.tile; ++local) {
      const int64_t place = modulo(origins[tile] + local, axis.length);
      const int64_t depth = std::min(local, axis.tile - 1 - local);
      if (depth > best[place]) {
        best[place] = depth;
        owner[place] = tile;
      }
    }
  }
  return owner;
}

/// For each tile where the positions from `before` ahead of it to `after` behind it come from; what lies outside a
/// canvas that is not periodic is left out.
inline std::vector<std::vector<Segment>> axis_ring(const Axis& axis, int64_t before, int64_t after) {
  const std::vector<int64_t> origins = axis_origins(axis), owners = axis_owners(axis);
  std::vector<std::vector<Segment>> ring(origins.size());
  for (int64_t tile = 0; tile < static_cast<int64_t>(origins.size()); ++tile) {
    const int64_t room = axis.length - axis.tile - origins[tile];
    const int64_t first = axis.wrap ? -before : -std::min(before, origins[tile]);
    const int64_t last = axis.tile + (axis.wrap ? after : std::min(after, room));
    for (int64_t offset = first; offset < last; ++offset) {
      const int64_t place = modulo(origins[tile] + offset, axis.length);
      const bool own = modulo(offset, axis.length) < axis.tile;
      const int64_t source = own ? tile : owners[place];
      const int64_t start = modulo(place - origins[source], axis.length);
      std::vector<Segment>& found = ring[tile];
      const bool crosses = offset == 0 || offset == axis.tile;
      if (!found.empty() && !crosses && found.back().source == source &&
          found.back().start + found.back().length == start) {
        ++found.back().length;
      } else {
        found.push_back({source, start, 1, offset});
      }
    }
  }
  return ring;
}

/// For each tile the canvas positions that it covers, in the form of a ring whose only source is the canvas.
inline std::vector<std::vector<Segment>> axis_cuts(const Axis& axis) {
  std::vector<std::vector<Segment>> cuts;
  for (const int64_t origin : axis_origins(axis)) {
    const int64_t fits = std::min(axis.tile, axis.length - origin);
    cuts.push_back({{0, origin, fits, 0}});
    if (fits < axis.tile) cuts.back().push_back({0, 0, axis.tile - fits, fits});
  }
  return cuts;
}

/// The canvas cut where the set of covering tiles changes.
inline std::vector<Span> axis_spans(const Axis& axis) {
  const std::vector<int64_t> origins = axis_origins(axis);
  std::vector<int64_t> cuts{0, axis.length};
  for (const int64_t origin : origins) {
    cuts.push_back(origin);
    cuts.push_back(modulo(origin + axis.tile, axis.length));
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<Span> spans;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) spans.push_back({cuts[i], cuts[i + 1], {}});
  for (int64_t tile = 0; tile < static_cast<int64_t>(origins.size()); ++tile) {
    size_t span = std::lower_bound(cuts.begin(), cuts.end(), origins[tile]) - cuts.begin();
    for (int64_t local = 0; local < axis.tile; span = (span + 1) % spans.size()) {
      spans[span].first.push_back({tile, local});
      local += spans[span].end - spans[span].begin;
    }
  }
  return spans;
}

}  // namespace tiledattn
