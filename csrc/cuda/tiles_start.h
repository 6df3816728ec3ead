// Cutting, padding and blending tiles on a GPU: one launch each, nothing allocated, nothing waited for. No torch here.
#pragma once

#include "cuda/tiles_call.h"

namespace tiledattn::cuda {

/// Starts a kernel on the current device and a stream (a cudaStream_t): null, or the runtime's own words.
const char* start(const CopyTiles& call, void* stream);
const char* start(const BlendTiles& call, void* stream);

}  // namespace tiledattn::cuda
