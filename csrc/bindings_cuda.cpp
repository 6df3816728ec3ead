// What the library knows of CUDA; without CUDA objects, that it has none.

#include "bindings.h"

#ifdef TILEDATTN_CUDA
#include "cuda/device.h"
#include "cuda/stream.h"
#endif

namespace tiledattn::bindings {
namespace {

/// Version of the CUDA runtime in the library, such as 13000; 0 without CUDA.
int64_t native_cuda_version() {
#ifdef TILEDATTN_CUDA
  return cuda::runtime_version();
#else
  return 0;
#endif
}

/// Why no kernel of the library runs on the current device; empty where one does.
std::string native_cuda_reason() {
#ifdef TILEDATTN_CUDA
  if (!cuda::has_streams()) return "torch was built without CUDA";
  const char* error = cuda::device_error();
  return error ? error : "";
#else
  return "the native library was built without CUDA";
#endif
}

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_FRAGMENT(tiledattn, m) {
  m.def("native_cuda_version() -> int");
  m.def("native_cuda_reason() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CompositeExplicitAutograd, m) {
  m.impl("native_cuda_version", TORCH_BOX(&tiledattn::bindings::native_cuda_version));
  m.impl("native_cuda_reason", TORCH_BOX(&tiledattn::bindings::native_cuda_reason));
}
