// The operator of group norms of tiles on the CPU. A layout is the flat list of ints of TileLayout.as_ints().

#include <optional>

#include "bindings.h"
#include "bindings_layout.h"
#include "norm.h"

namespace tiledattn::bindings {
namespace {

const void* read_channels(const char* name, const std::optional<Tensor>& numbers, const Tensor& tiles) {
  if (!numbers) return nullptr;
  require_on_cpu(name, *numbers);
  require_type(name, *numbers, tiles.scalar_type());
  require_contiguous(name, *numbers);
  require_shape(name, *numbers, {tiles.size(2)});
  return numbers->const_data_ptr();
}

void group_norm_tiles_cpu(Tensor tiles, std::optional<Tensor> weight, std::optional<Tensor> bias, Tensor out,
                          std::vector<int64_t> ints, int64_t num_groups, double eps, bool neighbours) {
  const Layout layout = read_layout(ints);
  const ElementType type = element_type("tiles", tiles);
  const Image image = read_tiles(tiles, layout);
  require(num_groups > 0 && image.channels % num_groups == 0, "num_groups: got ", num_groups,
          "; expected a divisor of the ", image.channels, " channels");
  GroupNorm norm{num_groups, nullptr, nullptr, eps, neighbours ? NormScope::neighbours : NormScope::canvas};
  norm.weight = read_channels("weight", weight, tiles), norm.bias = read_channels("bias", bias, tiles);
  const auto tile = [&](int i) { return layout.axes[i].tile; };
  void* to = read_out(out, tiles, layout.shape({layout.tiles(), image.batch, image.channels}, tile));
  group_norm_tiles(layout.axes, type, image, norm, to, torch_threads());
}

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CPU, m) {
  m.impl("group_norm_tiles_cpu", TORCH_BOX(&tiledattn::bindings::group_norm_tiles_cpu));
}
