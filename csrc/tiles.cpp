#include "tiles.h"

namespace tiledattn {
namespace {

// Results larger than this don't stay in the caches anyway.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
// Elements that are worth a thread.
constexpr int64_t kGrain = 1 << 14;

using Segments = std::vector<std::vector<Segment>>;  // of every tile of an axis

int64_t count(const std::vector<int64_t>& values) { return static_cast<int64_t>(values.size()); }

int64_t grain_of(int64_t row) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row)); }

/// Tables of a copy, which own what a CopyRows points to.
struct CopyTables {
  CopyRows call{};
  std::array<std::vector<int64_t>, 2> offset;
  std::vector<RowPiece> pieces;
  std::vector<int64_t> piece_start{0};

  /// Offsets of z or y, position by position; what no segment brings stays kNothing.
  void set_offsets(int axis, const Segments& segments, int64_t before, int64_t tile_stride, int64_t stride) {
    const int64_t extent = call.extent[axis];
    offset[axis].assign(segments.size() * extent, kNothing);
    for (size_t tile = 0; tile < segments.size(); ++tile) {
      for (const Segment& segment : segments[tile]) {
        for (int64_t i = 0; i < segment.length; ++i) {
          offset[axis][tile * extent + before + segment.offset + i] =
              segment.source * tile_stride + (segment.start + i) * stride;
        }
      }
    }
    call.offset[axis] = offset[axis].data();
  }

  /// Pieces of rows, with zeros where no segment lies.
  void set_pieces(const Segments& segments, int64_t before, int64_t tile_stride, int64_t stride) {
    for (const std::vector<Segment>& row : segments) {
      int64_t done = 0;
      for (const Segment& segment : row) {
        const int64_t target = before + segment.offset;
        if (target > done) pieces.push_back({kNothing, target - done});
        pieces.push_back({segment.source * tile_stride + segment.start * stride, segment.length});
        done = target + segment.length;
      }
      if (done < call.extent[2]) pieces.push_back({kNothing, call.extent[2] - done});
      piece_start.push_back(static_cast<int64_t>(pieces.size()));
    }
    call.pieces = pieces.data();
    call.piece_start = piece_start.data();
  }
};

void run_copy(const std::array<Segments, 3>& segments, const std::array<int64_t, 3>& extent,
              const std::array<int64_t, 3>& before, ElementType type, const Image& image, void* out,
              const Parallel& parallel) {
  CopyTables tables;
  CopyRows& call = tables.call;
  call.source = static_cast<const char*>(image.data);
  call.out = static_cast<char*>(out);
  call.element_size = size_of(type);
  call.batch = image.batch, call.channels = image.channels;
  call.batch_stride = image.batch_stride, call.channel_stride = image.channel_stride;
  call.stride = image.stride[2];
  int64_t rows = image.batch * image.channels;
  for (int axis = 0; axis < 3; ++axis) {
    call.grid[axis] = static_cast<int64_t>(segments[axis].size());
    call.extent[axis] = extent[axis];
    rows *= call.grid[axis] * (axis < 2 ? extent[axis] : 1);
  }
  if (rows == 0) return;
  const int64_t stride_x = image.tile_stride, stride_y = stride_x * call.grid[2], stride_z = stride_y * call.grid[1];
  tables.set_offsets(0, segments[0], before[0], stride_z, image.stride[0]);
  tables.set_offsets(1, segments[1], before[1], stride_y, image.stride[1]);
  tables.set_pieces(segments[2], before[2], stride_x, image.stride[2]);
  call.stream = rows * extent[2] * call.element_size >= kStreamBytes;
  const auto kernel = [&](int64_t first, int64_t last) {
#define TILEDATTN_CALL copy_rows(call, first, last)
    TILEDATTN_DISPATCH
#undef TILEDATTN_CALL
  };
  parallel_for(parallel, rows, grain_of(extent[2]), kernel);
}

/// Tables of a blend, which own what a BlendRows points to.
struct BlendTables {
  BlendRows call{};
  std::array<std::vector<Cover>, 2> covers;
  std::array<std::vector<int64_t>, 2> cover_start;
  std::vector<RowTile> tiles;
  std::vector<int64_t> tile_start{0};

  template <typename S>
  void set_covers(int number, const Axis& axis, const S* weights, int64_t tile_stride, int64_t stride) {
    cover_start[number].push_back(0);
    for (const Span& span : axis_spans(axis)) {
      for (int64_t position = span.begin; position < span.end; ++position) {
        for (const Place& place : span.first) {
          const int64_t local = place.local + position - span.begin;
          const double weight = weights ? static_cast<double>(weights[place.tile * axis.tile + local]) : 1.0;
          covers[number].push_back({place.tile * tile_stride + local * stride, weight});
        }
        cover_start[number].push_back(static_cast<int64_t>(covers[number].size()));
      }
    }
    call.covers[number] = covers[number].data();
    call.cover_start[number] = cover_start[number].data();
  }

  void set_tiles(const Axis& axis, const void* weights, int64_t tile_stride, int64_t stride) {
    std::vector<std::vector<RowTile>> blocks((axis.length + kBlendBlock - 1) / kBlendBlock);
    int64_t number = 0;
    for (const std::vector<Segment>& cuts : axis_cuts(axis)) {
      for (const Segment& cut : cuts) {
        for (int64_t done = 0; done < cut.length;) {
          const int64_t position = cut.start + done, local = cut.offset + done, target = position % kBlendBlock;
          const int64_t length = std::min(cut.length - done, kBlendBlock - target);
          blocks[position / kBlendBlock].push_back(
              {number * tile_stride + local * stride, number * axis.tile + local, target, length});
          done += length;
        }
      }
      ++number;
    }
    for (const std::vector<RowTile>& block : blocks) {
      tiles.insert(tiles.end(), block.begin(), block.end());
      tile_start.push_back(static_cast<int64_t>(tiles.size()));
    }
    call.tiles = tiles.data();
    call.tile_start = tile_start.data();
    call.weights = weights;
  }
};

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
  run_copy({axis_cuts(axes[0]), axis_cuts(axes[1]), axis_cuts(axes[2])}, {axes[0].tile, axes[1].tile, axes[2].tile},
           {0, 0, 0}, type, canvas, out, parallel);
}

void pad_tiles(const Axes& axes, const std::array<Ring, 3>& rings, ElementType type, const Image& tiles, void* out,
               const Parallel& parallel) {
  std::array<Segments, 3> segments;
  std::array<int64_t, 3> extent, before;
  for (int axis = 0; axis < 3; ++axis) {
    segments[axis] = axis_ring(axes[axis], rings[axis].before, rings[axis].after);
    extent[axis] = rings[axis].before + axes[axis].tile + rings[axis].after;
    before[axis] = rings[axis].before;
  }
  run_copy(segments, extent, before, type, tiles, out, parallel);
}

void blend_tiles(const Axes& axes, ElementType type, const Image& tiles, const std::array<const void*, 3>& weights,
                 void* out, const Parallel& parallel) {
  BlendTables tables;
  BlendRows& call = tables.call;
  call.source = static_cast<const char*>(tiles.data);
  call.out = static_cast<char*>(out);
  call.type = type;
  call.batch = tiles.batch, call.channels = tiles.channels;
  call.batch_stride = tiles.batch_stride, call.channel_stride = tiles.channel_stride;
  call.row_stride = tiles.stride[1], call.stride = tiles.stride[2];
  for (int axis = 0; axis < 3; ++axis) call.size[axis] = axes[axis].length;
  const int64_t rows = tiles.batch * tiles.channels * call.size[0] * call.size[1];
  if (rows == 0) return;
  int64_t tile_stride[3] = {0, 0, tiles.tile_stride};
  tile_stride[1] = tile_stride[2] * count(axis_origins(axes[2]));
  tile_stride[0] = tile_stride[1] * count(axis_origins(axes[1]));
  for (int axis = 0; axis < 2; ++axis) {
    if (type == ElementType::float64) {
      const auto* table = static_cast<const double*>(weights[axis]);
      tables.set_covers(axis, axes[axis], table, tile_stride[axis], tiles.stride[axis]);
    } else {
      const auto* table = static_cast<const float*>(weights[axis]);
      tables.set_covers(axis, axes[axis], table, tile_stride[axis], tiles.stride[axis]);
    }
  }
  tables.set_tiles(axes[2], weights[2], tile_stride[2], tiles.stride[2]);
  call.stream = rows * call.size[2] * size_of(type) >= kStreamBytes;
  const auto kernel = [&](int64_t first, int64_t last) {
#define TILEDATTN_CALL blend_rows(call, first, last)
    TILEDATTN_DISPATCH
#undef TILEDATTN_CALL
  };
  parallel_for(parallel, rows, grain_of(call.size[2]), kernel);
}

}  // namespace tiledattn
