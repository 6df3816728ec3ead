// Torch's current CUDA stream. A CPU build of torch has no such function: the symbol is weak, so that the library
// loads there all the same.
#pragma once

#include <cstdint>

extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace tiledattn::cuda {

/// Whether torch has streams at all.
inline bool has_streams() { return aoti_torch_get_current_cuda_stream != nullptr; }

/// The stream (a cudaStream_t) that work on a device belongs on, or null and false.
inline bool current_stream(int32_t device_index, void** stream) {
  return has_streams() && aoti_torch_get_current_cuda_stream(device_index, stream) == 0;
}

}  // namespace tiledattn::cuda
