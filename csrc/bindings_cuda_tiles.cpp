// Operators that cut, pad and blend tiles on a GPU. The tables are what tiledattn/backends/cuda_tiles.py makes of a
// layout; a wrong entry gives zeros and never a read of foreign memory.

#ifdef TILEDATTN_CUDA

#include "bindings_cuda.h"
#include "bindings_layout.h"
#include "cuda/tiles_start.h"

namespace tiledattn::bindings {
namespace {

/// A table [rows, columns, 2] of an axis, of tiles and positions.
const AxisPlace* read_places(const char* name, const Tensor& table, int64_t rows, int64_t columns,
                             const Tensor& source) {
  require_same_device(name, table, source);
  require_type(name, table, ScalarType::Int);
  require_contiguous(name, table);
  require_shape(name, table, {rows, columns, 2});
  require(reinterpret_cast<uintptr_t>(table.const_data_ptr()) % sizeof(AxisPlace) == 0, name,
          ": not aligned to 8 bytes");
  return static_cast<const AxisPlace*>(table.const_data_ptr());
}

void require_number(const char* name, size_t count, const Layout& layout) {
  require(count == static_cast<size_t>(layout.count), name, ": got ", count, " tensors; expected ", layout.count,
          ", one per axis");
}

/// A kernel's positions and tile numbers are 32-bit ones.
void require_narrow(const Layout& layout, const std::array<int64_t, 3>& extent) {
  for (int i = layout.first(); i < 3; ++i) {
    require(layout.axes[i].length <= INT32_MAX && extent[i] <= INT32_MAX,
            "layout: an axis has more than 2^31 - 1 positions");
  }
}

void* read_out(Tensor& out, const Tensor& source, const std::vector<int64_t>& shape) {
  require_same_device("out", out, source);
  require_type("out", out, source.scalar_type());
  require_contiguous("out", out);
  require_shape("out", out, shape);
  return out.mutable_data_ptr();
}

/// Starts a kernel on the current stream of `source`'s device, unless `out` is empty.
template <typename Call>
void start(const char* op, const Call& call, const Tensor& source, const Tensor& out) {
  const OnDevice device(source);
  const char* error = cuda::start(call, device.stream());
  if (error) require(false, op, " on ", shape_of(source), " to ", shape_of(out), ": ", error);
}

void require_made(const char* op, const char* error, const Tensor& source) {
  if (error) require(false, op, " on ", shape_of(source), ": ", error);
}

std::array<int64_t, 3> tile_of(const Layout& layout) {
  return {layout.axes[0].tile, layout.axes[1].tile, layout.axes[2].tile};
}

cuda::PlaceTables read_tables(const char* name, const std::vector<Tensor>& tables, const Layout& layout,
                              const std::array<int64_t, 3>& extent, const Tensor& source) {
  require_number(name, tables.size(), layout);
  cuda::PlaceTables found{};
  for (int i = layout.first(); i < 3; ++i) {
    found[i] = read_places(name, tables[i - layout.first()], axis_tiles(layout.axes[i]), extent[i], source);
  }
  return found;
}

void extract_tiles_cuda(Tensor canvas, std::vector<Tensor> places, int64_t unit, Tensor out,
                        std::vector<int64_t> ints) {
  const Layout layout = read_layout(ints);
  require_on_cuda("canvas", canvas);
  require(unit >= 1, "unit: got ", unit, "; expected at least 1");
  const ElementType type = element_type("canvas", canvas);
  const Image image = read_image("canvas", canvas, 2, layout);
  const auto length = [&](int i) { return layout.axes[i].length; };
  const auto tile = [&](int i) { return layout.axes[i].tile; };
  require_narrow(layout, tile_of(layout));
  require_shape("canvas", canvas, layout.shape({image.batch, image.channels}, length));
  void* to = read_out(out, canvas, layout.shape({layout.tiles(), image.batch, image.channels}, tile));
  const cuda::PlaceTables tables = read_tables("places", places, layout, tile_of(layout), canvas);
  if (out.numel() == 0) return;
  cuda::CopyTiles call{};
  require_made("extract_tiles", make_extract(call, layout.axes, type, image, tables, unit, to), canvas);
  start("extract_tiles", call, canvas, out);
}

Image read_tiles(const Tensor& tiles, int64_t unit, const Layout& layout) {
  require_on_cuda("tiles", tiles);
  require(unit >= 1, "unit: got ", unit, "; expected at least 1");
  const Image image = read_image("tiles", tiles, 3, layout);
  const auto tile = [&](int i) { return layout.axes[i].tile; };
  require_shape("tiles", tiles, layout.shape({layout.tiles(), image.batch, image.channels}, tile));
  return image;
}

void pad_tiles_cuda(Tensor tiles, std::vector<Tensor> places, int64_t unit, Tensor out, std::vector<int64_t> ints,
                    std::vector<int64_t> pad) {
  const Layout layout = read_layout(ints);
  const std::array<Ring, 3> rings = read_pad(pad, layout);
  const ElementType type = element_type("tiles", tiles);
  const Image image = read_tiles(tiles, unit, layout);
  std::array<int64_t, 3> extent = tile_of(layout);
  for (int i = layout.first(); i < 3; ++i) extent[i] += rings[i].before + rings[i].after;
  const auto padded = [&](int i) { return extent[i]; };
  require_narrow(layout, extent);
  void* to = read_out(out, tiles, layout.shape({layout.tiles(), image.batch, image.channels}, padded));
  const cuda::PlaceTables tables = read_tables("places", places, layout, extent, tiles);
  if (out.numel() == 0) return;
  cuda::CopyTiles call{};
  require_made("pad_tiles", make_pad(call, layout.axes, rings, type, image, tables, unit, to), tiles);
  start("pad_tiles", call, tiles, out);
}

const void* read_weights(const Tensor& table, const Axis& axis, ElementType type, const Tensor& tiles) {
  require_same_device("weights", table, tiles);
  require_type("weights", table, type == ElementType::float64 ? ScalarType::Double : ScalarType::Float);
  require_contiguous("weights", table);
  require_shape("weights", table, {axis_tiles(axis), axis.tile});
  return table.const_data_ptr();
}

void blend_tiles_cuda(Tensor tiles, std::vector<Tensor> weights, std::vector<Tensor> covers, int64_t unit, Tensor out,
                      std::vector<int64_t> ints) {
  const Layout layout = read_layout(ints);
  const ElementType type = element_type("tiles", tiles);
  const Image image = read_tiles(tiles, unit, layout);
  require_number("weights", weights.size(), layout);
  require_number("covers", covers.size(), layout);
  require_narrow(layout, tile_of(layout));
  cuda::PlaceTables tables{};
  std::array<int64_t, 3> count{1, 1, 1};
  std::array<const void*, 3> windows{};
  for (int i = layout.first(); i < 3; ++i) {
    const Tensor &cover = covers[i - layout.first()], &window = weights[i - layout.first()];
    count[i] = cover.dim() == 3 ? cover.size(1) : 0;
    tables[i] = read_places("covers", cover, layout.axes[i].length, count[i], tiles);
    windows[i] = read_weights(window, layout.axes[i], type, tiles);
  }
  const auto length = [&](int i) { return layout.axes[i].length; };
  void* to = read_out(out, tiles, layout.shape({image.batch, image.channels}, length));
  if (out.numel() == 0) return;
  cuda::BlendTiles call{};
  const char* error = make_blend(call, layout.axes, type, image, tables, count, unit, windows, to);
  require_made("blend_tiles", error, tiles);
  start("blend_tiles", call, tiles, out);
}

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_FRAGMENT(tiledattn, m) {
  m.def("extract_tiles_cuda(Tensor canvas, Tensor[] places, int unit, Tensor(a!) out, int[] layout) -> ()");
  m.def(
      "blend_tiles_cuda(Tensor tiles, Tensor[] weights, Tensor[] covers, int unit, Tensor(a!) out, int[] layout) "
      "-> ()");
  m.def("pad_tiles_cuda(Tensor tiles, Tensor[] places, int unit, Tensor(a!) out, int[] layout, int[] pad) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CUDA, m) {
  m.impl("extract_tiles_cuda", TORCH_BOX(&tiledattn::bindings::extract_tiles_cuda));
  m.impl("blend_tiles_cuda", TORCH_BOX(&tiledattn::bindings::blend_tiles_cuda));
  m.impl("pad_tiles_cuda", TORCH_BOX(&tiledattn::bindings::pad_tiles_cuda));
}

#endif
