// The operators of the native library, on LibTorch's stable ABI. torch.ops.load_library loads it: no Python symbol is
// used, so that one library serves every Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "cpu/instruction_sets.h"

namespace {

// Raised with every change of a schema below; native.py refuses a library of another number.
constexpr int64_t kInterface = 1;

int64_t native_interface() { return kInterface; }

std::string native_instruction_set(std::string name) {
  if (!name.empty()) {
    STD_TORCH_CHECK(tiledattn::use_instruction_set(name.c_str()), "name: got '", name,
                    "'; expected auto, portable, avx2, avx512 or avx512_bf16, and one that this processor runs");
  }
  return tiledattn::name_of(tiledattn::instruction_set());
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(tiledattn, m) {
  m.def("native_interface() -> int");
  m.def("native_instruction_set(str name) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CompositeExplicitAutograd, m) {
  m.impl("native_interface", TORCH_BOX(&native_interface));
  m.impl("native_instruction_set", TORCH_BOX(&native_instruction_set));
}
