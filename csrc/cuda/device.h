// The CUDA half of the library: what the bindings may ask of it. No torch here.
#pragma once

namespace tiledattn::cuda {

/// Version of the CUDA runtime that is linked in, such as 13000.
int runtime_version();

/// Whether the library has kernels for the current device: null, or the runtime's own words. Starts nothing.
const char* device_error();

}  // namespace tiledattn::cuda
