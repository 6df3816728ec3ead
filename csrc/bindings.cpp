// The operators of the native library, on LibTorch's stable ABI. torch.ops.load_library loads it: no Python symbol is
// used, so that one library serves every Python.

#include "bindings.h"

#include "cpu/instruction_sets.h"

namespace tiledattn::bindings {
namespace {

// Raised with every change of a schema below; native_library.py refuses a library of another number.
constexpr int64_t kInterface = 4;

int64_t native_interface() { return kInterface; }

std::string native_instruction_set(std::string name) {
  require(name.empty() || use_instruction_set(name.c_str()), "name: got '", name,
          "'; expected auto, portable, avx2, avx512, avx512_bf16 or amx, and one that this processor runs");
  return name_of(instruction_set());
}

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_FRAGMENT(tiledattn, m) {
  m.def("native_interface() -> int");
  m.def("native_instruction_set(str name) -> str");
  m.def("native_axis_geometry(int[] axis, int before, int after) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("extract_tiles_cpu(Tensor canvas, Tensor(a!) out, int[] layout) -> ()");
  m.def("blend_tiles_cpu(Tensor tiles, Tensor[] weights, Tensor(a!) out, int[] layout) -> ()");
  m.def("pad_tiles_cpu(Tensor tiles, Tensor(a!) out, int[] layout, int[] pad) -> ()");
  m.def(
      "group_norm_tiles_cpu(Tensor tiles, Tensor? weight, Tensor? bias, Tensor(a!) out, int[] layout, int num_groups, "
      "float eps, bool neighbours) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CompositeExplicitAutograd, m) {
  m.impl("native_interface", TORCH_BOX(&tiledattn::bindings::native_interface));
  m.impl("native_instruction_set", TORCH_BOX(&tiledattn::bindings::native_instruction_set));
}
