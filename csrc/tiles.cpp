#include "tiles.h"

#include "cache.h"

namespace tiledattn {
namespace {

// Results larger than this don't stay in the caches anyway.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
constexpr int64_t kLineBytes = 64;
// What several tiles read stays in the first-level cache meanwhile.
constexpr int64_t kBandBytes = int64_t{16} << 10;
// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 14;
// Layouts whose tables are kept.
constexpr size_t kKept = 64;

using Segments = std::vector<std::vector<Segment>>;  // of every tile of an axis

int64_t count(const std::vector<int64_t>& values) { return static_cast<int64_t>(values.size()); }

/// Items that are worth a thread.
int64_t grain_of(int64_t elements, int64_t items) { return std::max<int64_t>(1, kGrain * items / elements); }

/// `length` in parts as equal as can be, of at most `most`: the size of each but the last.
int64_t part_of(int64_t length, int64_t most) {
  const int64_t parts = (length + most - 1) / std::max<int64_t>(1, most);
  return (length + parts - 1) / std::max<int64_t>(1, parts);
}

/// Strides from tile to tile along each axis of the grid.
std::array<int64_t, 3> tile_strides(const Axes& axes, int64_t stride) {
  const int64_t y = stride * count(axis_origins(axes[2]));
  return {y * count(axis_origins(axes[1])), y, stride};
}

void append_axes(std::vector<int64_t>& key, const Axes& axes) {
  for (const Axis& axis : axes) key.insert(key.end(), {axis.length, axis.tile, axis.overlap, axis.wrap});
}

/// Tables of a copy, which own what a CopyRows points to.
struct CopyTables {
  CopyRows call{};
  std::vector<CopyPlane> planes;
  std::vector<CopyRun> runs;
  std::vector<int64_t> band_start{0};
  std::vector<RowPiece> pieces;
  std::vector<int64_t> piece_start{0};

  /// Rows that are copied together.
  int64_t most_rows() const { return std::max<int64_t>(1, kBandBytes / (call.extent[2] * call.element_size)); }

  void end_band() { band_start.push_back(static_cast<int64_t>(runs.size())); }

  /// A canvas's planes and rows, each together with all tiles that cover it.
  void set_cuts(const Axis& z, const Axis& y, int64_t stride_z, int64_t stride_y) {
    for (const Span& span : axis_spans(z)) {
      for (int64_t at = span.begin; at < span.end; ++at) {
        for (const Place& place : span.first) {
          planes.push_back({place.tile, place.local + at - span.begin, at * stride_z});
        }
      }
    }
    for (const Span& span : axis_spans(y)) {
      const int64_t part = part_of(span.end - span.begin, most_rows());
      for (int64_t at = span.begin; at < span.end; at += part, end_band()) {
        for (const Place& place : span.first) {
          runs.push_back({place.tile, place.local + at - span.begin, std::min(part, span.end - at), at * stride_y});
        }
      }
    }
  }

  /// Tiles' planes and rows in their own order, with zeros where no segment lies.
  void set_rings(const Segments& z, const Segments& y, const std::array<int64_t, 3>& before,
                 const std::array<int64_t, 3>& tile_stride, const std::array<int64_t, 3>& stride) {
    for (const CopyRun& run : in_order(z, call.extent[0], before[0], tile_stride[0], stride[0])) {
      for (int64_t i = 0; i < run.rows; ++i) {
        const int64_t source = run.source == kNothing ? kNothing : run.source + i * stride[0];
        planes.push_back({run.tile, run.local + i, source});
      }
    }
    const int64_t part = part_of(call.extent[1], most_rows());
    for (CopyRun run : in_order(y, call.extent[1], before[1], tile_stride[1], stride[1])) {
      while (run.rows > 0) {
        CopyRun first = run;
        first.rows = std::min(run.rows, part - run.local % part);
        runs.push_back(first);
        run.local += first.rows, run.rows -= first.rows;
        if (run.source != kNothing) run.source += first.rows * stride[1];
        if (run.local % part == 0 || run.local == call.extent[1]) end_band();
      }
    }
  }

  static std::vector<CopyRun> in_order(const Segments& segments, int64_t extent, int64_t before, int64_t tile_stride,
                                       int64_t stride) {
    std::vector<CopyRun> found;
    int64_t tile = 0;
    for (const std::vector<Segment>& row : segments) {
      int64_t done = 0;
      for (const Segment& segment : row) {
        const int64_t local = before + segment.offset;
        if (local > done) found.push_back({tile, done, local - done, kNothing});
        found.push_back({tile, local, segment.length, segment.source * tile_stride + segment.start * stride});
        done = local + segment.length;
      }
      if (done < extent) found.push_back({tile, done, extent - done, kNothing});
      ++tile;
    }
    return found;
  }

  void set_pieces(const Segments& segments, int64_t before, int64_t tile_stride, int64_t stride) {
    for (const CopyRun& run : in_order(segments, call.extent[2], before, tile_stride, stride)) {
      if (run.local == 0 && run.tile > 0) piece_start.push_back(static_cast<int64_t>(pieces.size()));
      pieces.push_back({run.source, run.rows});
    }
    piece_start.push_back(static_cast<int64_t>(pieces.size()));
  }

  void finish() {
    call.planes = static_cast<int64_t>(planes.size()), call.bands = static_cast<int64_t>(band_start.size()) - 1;
    call.plane = planes.data(), call.runs = runs.data(), call.band_start = band_start.data();
    call.pieces = pieces.data(), call.piece_start = piece_start.data();
  }
};

void set_shape(CopyRows& call, const Axes& axes, const std::array<Ring, 3>& rings, ElementType type) {
  call.element_size = size_of(type);
  for (int axis = 0; axis < 3; ++axis) {
    call.grid[axis] = count(axis_origins(axes[axis]));
    call.extent[axis] = rings[axis].before + axes[axis].tile + rings[axis].after;
  }
}

void run_copy(const CopyTables& tables, const Image& image, void* out, const Parallel& parallel) {
  CopyRows call = tables.call;
  call.source = static_cast<const char*>(image.data);
  call.out = static_cast<char*>(out);
  call.batch = image.batch, call.channels = image.channels;
  call.batch_stride = image.batch_stride, call.channel_stride = image.channel_stride;
  call.row_stride = image.stride[1], call.stride = image.stride[2];
  const int64_t items = call.batch * call.channels * call.planes * call.bands * call.grid[2];
  if (items == 0) return;
  int64_t elements = call.batch * call.channels;
  for (int axis = 0; axis < 3; ++axis) elements *= call.grid[axis] * call.extent[axis];
  call.stream = elements * call.element_size >= kStreamBytes;
  const auto kernel = [&](int64_t first, int64_t last) {
#define TILEDATTN_CALL copy_rows(call, first, last)
    TILEDATTN_DISPATCH
#undef TILEDATTN_CALL
  };
  parallel_for(parallel, items, grain_of(elements, items), kernel);
}

/// Tables of a blend, which own what a BlendRows points to.
struct BlendTables {
  BlendRows call{};
  std::array<std::vector<CoveredRun>, 3> runs;
  std::array<std::vector<Cover>, 3> covers;
  std::vector<int64_t> block_start;

  /// An axis in runs of at most `most` positions that the same tiles cover, of a multiple of `unit` where the tiles
  /// allow it; none crosses a multiple of `block`.
  void set_runs(int number, const Axis& axis, int64_t tile_stride, int64_t stride, int64_t most, int64_t unit,
                int64_t block) {
    for (const Span& span : axis_spans(axis)) {
      const int64_t part = (part_of(span.end - span.begin, most) + unit - 1) / unit * unit;
      for (int64_t at = span.begin, length; at < span.end; at += length) {
        length = std::min(std::min(part, span.end - at), block - at % block);
        const int64_t first = static_cast<int64_t>(covers[number].size());
        for (const Place& place : span.first) {
          const int64_t local = place.local + at - span.begin;
          covers[number].push_back({place.tile * tile_stride + local * stride, place.tile * axis.tile + local});
        }
        runs[number].push_back({at, length, first, static_cast<int64_t>(covers[number].size())});
      }
    }
    call.runs[number] = runs[number].data(), call.covers[number] = covers[number].data();
  }

  void set_blocks() {
    for (size_t run = 0; run < runs[2].size(); ++run) {
      if (runs[2][run].begin % kBlendBlock == 0) block_start.push_back(static_cast<int64_t>(run));
    }
    call.blocks = static_cast<int64_t>(block_start.size());
    block_start.push_back(static_cast<int64_t>(runs[2].size()));
    call.block_start = block_start.data();
  }

  void set(const Axes& axes, ElementType type, const Image& tiles) {
    const std::array<int64_t, 3> tile_stride = tile_strides(axes, tiles.tile_stride);
    set_runs(0, axes[0], tile_stride[0], tiles.stride[0], 1, 1, axes[0].length);
    set_runs(1, axes[1], tile_stride[1], tiles.stride[1], kBlendRows, 1, axes[1].length);
    set_runs(2, axes[2], tile_stride[2], tiles.stride[2], axes[2].length, kLineBytes / size_of(type), kBlendBlock);
    set_blocks();
    call.few_on_x = true;
    call.whole_lines = axes[2].length * size_of(type) % kLineBytes == 0;
    for (const CoveredRun& run : runs[2]) {
      call.whole_lines &= run.begin * size_of(type) % kLineBytes == 0;
      call.few_on_x &= tiles.stride[2] == 1 || run.last_cover - run.first_cover <= kBlendTerms;
    }
    call.type = type;
    call.bands = static_cast<int64_t>(runs[1].size());
    call.row_stride = tiles.stride[1], call.stride = tiles.stride[2];
    for (int axis = 0; axis < 3; ++axis) call.size[axis] = axes[axis].length;
  }
};

Cache<CopyTables>& copy_tables() {
  static Cache<CopyTables> cache(kKept);
  return cache;
}

Cache<BlendTables>& blend_tables() {
  static Cache<BlendTables> cache(kKept);
  return cache;
}

}  // namespace

int64_t size_of(ElementType type) {
  switch (type) {
    case ElementType::float32:
      return 4;
    case ElementType::float64:
      return 8;
    default:
      return 2;
  }
}

void extract_tiles(const Axes& axes, ElementType type, const Image& canvas, void* out, const Parallel& parallel) {
  std::vector<int64_t> key{1, size_of(type), canvas.stride[0], canvas.stride[1], canvas.stride[2]};
  append_axes(key, axes);
  const auto tables = copy_tables().get(key, [&](CopyTables& made) {
    set_shape(made.call, axes, {}, type);
    made.set_cuts(axes[0], axes[1], canvas.stride[0], canvas.stride[1]);
    made.set_pieces(axis_cuts(axes[2]), 0, 0, canvas.stride[2]);
    made.finish();
  });
  run_copy(*tables, canvas, out, parallel);
}

void pad_tiles(const Axes& axes, const std::array<Ring, 3>& rings, ElementType type, const Image& tiles, void* out,
               const Parallel& parallel) {
  std::vector<int64_t> key{0, size_of(type), tiles.tile_stride, tiles.stride[0], tiles.stride[1], tiles.stride[2]};
  append_axes(key, axes);
  for (const Ring& ring : rings) key.insert(key.end(), {ring.before, ring.after});
  const auto tables = copy_tables().get(key, [&](CopyTables& made) {
    set_shape(made.call, axes, rings, type);
    const auto ring = [&](int axis) { return axis_ring(axes[axis], rings[axis].before, rings[axis].after); };
    const std::array<int64_t, 3> tile_stride = tile_strides(axes, tiles.tile_stride);
    made.set_rings(ring(0), ring(1), {rings[0].before, rings[1].before, rings[2].before}, tile_stride, tiles.stride);
    made.set_pieces(ring(2), rings[2].before, tile_stride[2], tiles.stride[2]);
    made.finish();
  });
  run_copy(*tables, tiles, out, parallel);
}

void blend_tiles(const Axes& axes, ElementType type, const Image& tiles, const std::array<const void*, 3>& weights,
                 void* out, const Parallel& parallel) {
  static const double one = 1.0;
  static const float one_float = 1.0f;
  std::vector<int64_t> key{static_cast<int64_t>(type), tiles.tile_stride, tiles.stride[0], tiles.stride[1],
                           tiles.stride[2]};
  append_axes(key, axes);
  const auto tables = blend_tables().get(key, [&](BlendTables& made) { made.set(axes, type, tiles); });
  BlendRows call = tables->call;
  call.source = static_cast<const char*>(tiles.data);
  call.out = static_cast<char*>(out);
  call.batch = tiles.batch, call.channels = tiles.channels;
  call.batch_stride = tiles.batch_stride, call.channel_stride = tiles.channel_stride;
  const void* ones = type == ElementType::float64 ? static_cast<const void*>(&one) : &one_float;
  for (int axis = 0; axis < 3; ++axis) call.weights[axis] = weights[axis] ? weights[axis] : ones;
  const int64_t items = call.batch * call.channels * call.size[0] * call.bands * call.blocks;
  if (items == 0) return;
  const int64_t elements = call.batch * call.channels * call.size[0] * call.size[1] * call.size[2];
  call.stream = elements * size_of(type) >= kStreamBytes;
  const auto kernel = [&](int64_t first, int64_t last) {
#define TILEDATTN_CALL blend_rows(call, first, last)
    TILEDATTN_DISPATCH
#undef TILEDATTN_CALL
  };
  parallel_for(parallel, items, grain_of(elements, items), kernel);
}

}  // namespace tiledattn
