// Reading layouts, images and results. A layout is the flat list of ints of TileLayout.as_ints().
#pragma once

#include "bindings.h"
#include "huge_pages.h"
#include "tiledattn/tile_index.h"
#include "tiles.h"

namespace tiledattn::bindings {

/// A layout: axes z, y, x, the last `count` of which are its own.
struct Layout {
  Axes axes;
  int count = 0;

  int first() const { return 3 - count; }

  int64_t tiles() const {
    int64_t product = 1;
    for (const Axis& axis : axes) product *= axis_tiles(axis);
    return product;
  }

  /// `lead` and then, for each axis, what `of` says.
  template <typename Of>
  std::vector<int64_t> shape(std::vector<int64_t> lead, const Of& of) const {
    for (int i = first(); i < 3; ++i) lead.push_back(of(i));
    return lead;
  }
};

inline Axis read_axis(const std::vector<int64_t>& layout, size_t number, size_t count) {
  const Axis axis{layout[number], layout[count + number], layout[2 * count + number], layout[3 * count + number] != 0};
  const char* error = axis_error(axis);
  if (error) require(false, "layout: axis ", number, " of ", text_of(layout), ": ", error);
  return axis;
}

inline Layout read_layout(const std::vector<int64_t>& layout) {
  const size_t count = layout.size() / 4;
  require(layout.size() % 4 == 0 && count >= 1 && count <= 3, "layout: got ", layout.size(),
          " ints; expected 4 for each of 1 to 3 axes");
  Layout found;
  found.count = static_cast<int>(count);
  for (size_t i = 0; i < count; ++i) found.axes[found.first() + i] = read_axis(layout, i, count);
  return found;
}

/// Positions before and behind a tile, for each axis of the layout.
inline std::array<Ring, 3> read_pad(const std::vector<int64_t>& pad, const Layout& layout) {
  require(pad.size() == 2 * static_cast<size_t>(layout.count), "pad: got ", pad.size(),
          " ints; expected 2 for each of ", layout.count, " axes");
  std::array<Ring, 3> rings;
  for (int i = 0; i < layout.count; ++i) {
    rings[layout.first() + i] = {pad[2 * i], pad[2 * i + 1]};
    const bool negative = pad[2 * i] < 0 || pad[2 * i + 1] < 0;
    if (negative) require(false, "pad: got ", text_of(pad), "; expected no negative number");
  }
  return rings;
}

inline ElementType element_type(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return ElementType::float16;
    case ScalarType::BFloat16:
      return ElementType::bfloat16;
    case ScalarType::Float:
      return ElementType::float32;
    case ScalarType::Double:
      return ElementType::float64;
    default:
      require(false, name, ": dtype is ", torch::headeronly::toString(tensor.scalar_type()),
              "; expected float16, bfloat16, float32 or float64");
      return ElementType::float32;
  }
}

/// A tensor [T, B, C, ...] or, with `lead` 2, [B, C, ...]. The stride of a dim of one entry means nothing: 0.
inline Image read_image(const char* name, const Tensor& tensor, int64_t lead, const Layout& layout) {
  const int64_t dims = lead + layout.count;
  if (tensor.dim() != dims) require(false, name, ": shape is ", shape_of(tensor), "; expected ", dims, " dims");
  const auto stride = [&](int64_t dim) { return tensor.size(dim) == 1 ? 0 : tensor.stride(dim); };
  Image image{};
  image.data = tensor.const_data_ptr();
  image.batch = tensor.size(lead - 2), image.channels = tensor.size(lead - 1);
  image.tile_stride = lead == 3 ? stride(0) : 0;
  image.batch_stride = stride(lead - 2), image.channel_stride = stride(lead - 1);
  for (int i = 0; i < layout.count; ++i) image.stride[layout.first() + i] = stride(lead + i);
  if (tensor.size(tensor.dim() - 1) == 1) image.stride[2] = 1;
  return image;
}

/// A tile batch of the layout.
inline Image read_tiles(const Tensor& tiles, const Layout& layout) {
  require_on_cpu("tiles", tiles);
  const Image image = read_image("tiles", tiles, 3, layout);
  const auto tile = [&](int i) { return layout.axes[i].tile; };
  require_shape("tiles", tiles, layout.shape({layout.tiles(), image.batch, image.channels}, tile));
  return image;
}

/// Where a result of the source's type goes.
inline void* read_out(Tensor& out, const Tensor& source, const std::vector<int64_t>& shape) {
  require_on_cpu("out", out);
  require_type("out", out, source.scalar_type());
  require_contiguous("out", out);
  require_shape("out", out, shape);
  void* data = out.mutable_data_ptr();
  advise_huge_pages(data, out.numel() * size_of(element_type("out", out)));
  return data;
}

}  // namespace tiledattn::bindings
