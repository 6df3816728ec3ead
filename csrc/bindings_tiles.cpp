// Operators that cut, pad and blend tiles. A layout is the flat list of ints of TileLayout.as_ints().

#include "bindings.h"
#include "bindings_layout.h"
#include "tiles.h"

namespace tiledattn::bindings {
namespace {

void extract_tiles_cpu(Tensor canvas, Tensor out, std::vector<int64_t> ints) {
  const Layout layout = read_layout(ints);
  require_on_cpu("canvas", canvas);
  const ElementType type = element_type("canvas", canvas);
  const Image image = read_image("canvas", canvas, 2, layout);
  const auto length = [&](int i) { return layout.axes[i].length; };
  const auto tile = [&](int i) { return layout.axes[i].tile; };
  require_shape("canvas", canvas, layout.shape({image.batch, image.channels}, length));
  void* to = read_out(out, canvas, layout.shape({layout.tiles(), image.batch, image.channels}, tile));
  extract_tiles(layout.axes, type, image, to, torch_threads());
}

void pad_tiles_cpu(Tensor tiles, Tensor out, std::vector<int64_t> ints, std::vector<int64_t> pad) {
  const Layout layout = read_layout(ints);
  const std::array<Ring, 3> rings = read_pad(pad, layout);
  const ElementType type = element_type("tiles", tiles);
  const Image image = read_tiles(tiles, layout);
  const auto padded = [&](int i) { return rings[i].before + layout.axes[i].tile + rings[i].after; };
  void* to = read_out(out, tiles, layout.shape({layout.tiles(), image.batch, image.channels}, padded));
  pad_tiles(layout.axes, rings, type, image, to, torch_threads());
}

void blend_tiles_cpu(Tensor tiles, std::vector<Tensor> weights, Tensor out, std::vector<int64_t> ints) {
  const Layout layout = read_layout(ints);
  const ElementType type = element_type("tiles", tiles);
  const Image image = read_tiles(tiles, layout);
  require(weights.size() == static_cast<size_t>(layout.count), "weights: got ", weights.size(), " tensors; expected ",
          layout.count, ", one per axis");
  std::array<const void*, 3> tables{};
  for (int i = layout.first(); i < 3; ++i) {
    const Tensor& table = weights[i - layout.first()];
    require_on_cpu("weights", table);
    require_type("weights", table, type == ElementType::float64 ? ScalarType::Double : ScalarType::Float);
    require_contiguous("weights", table);
    const int64_t tiles_on_axis = static_cast<int64_t>(axis_origins(layout.axes[i]).size());
    require_shape("weights", table, {tiles_on_axis, layout.axes[i].tile});
    tables[i] = table.const_data_ptr();
  }
  const auto length = [&](int i) { return layout.axes[i].length; };
  void* to = read_out(out, tiles, layout.shape({image.batch, image.channels}, length));
  blend_tiles(layout.axes, type, image, tables, to, torch_threads());
}

Tensor table_of(const std::vector<int64_t>& values, int64_t columns) {
  const int64_t rows = columns ? static_cast<int64_t>(values.size()) / columns : 0;
  Tensor table = torch::stable::empty({rows, columns}, ScalarType::Long);
  int64_t* to = static_cast<int64_t*>(table.mutable_data_ptr());
  std::copy(values.begin(), values.end(), to);
  return table;
}

/// What geometry.h says of an axis (size, tile, overlap, wrap), for tests: origins [tiles, 1], owners [size, 1], ring
/// [segments, 5] of (tile, source, start, length, offset), spans [covers, 4] of (begin, end, tile, local).
std::tuple<Tensor, Tensor, Tensor, Tensor> axis_geometry(std::vector<int64_t> ints, int64_t before, int64_t after) {
  const Layout layout = read_layout(ints);
  require(layout.count == 1, "axis: got ", ints.size(), " ints; expected 4");
  const Axis& axis = layout.axes[2];
  std::vector<int64_t> ring, spans;
  int64_t tile = 0;
  for (const std::vector<Segment>& segments : axis_ring(axis, before, after)) {
    for (const Segment& s : segments) ring.insert(ring.end(), {tile, s.source, s.start, s.length, s.offset});
    ++tile;
  }
  for (const Span& span : axis_spans(axis)) {
    for (const Place& place : span.first) spans.insert(spans.end(), {span.begin, span.end, place.tile, place.local});
  }
  return {table_of(axis_origins(axis), 1), table_of(axis_owners(axis), 1), table_of(ring, 5), table_of(spans, 4)};
}

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CPU, m) {
  m.impl("extract_tiles_cpu", TORCH_BOX(&tiledattn::bindings::extract_tiles_cpu));
  m.impl("blend_tiles_cpu", TORCH_BOX(&tiledattn::bindings::blend_tiles_cpu));
  m.impl("pad_tiles_cpu", TORCH_BOX(&tiledattn::bindings::pad_tiles_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CompositeExplicitAutograd, m) {
  m.impl("native_axis_geometry", TORCH_BOX(&tiledattn::bindings::axis_geometry));
}
