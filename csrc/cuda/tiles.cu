#include "cuda/tiles_start.h"

#include "cuda/errors.h"
#include "cuda/tiles.cuh"

namespace tiledattn::cuda {
namespace {

template <typename Call>
const char* start_kernel(const Call& call, void* stream) {
  return with_kernel(call, [stream](auto kernel, const Call& arguments) -> const char* {
    const dim3 blocks(arguments.work.grid_x, arguments.work.grid_y);
    const dim3 threads(arguments.work.across, arguments.work.down);
    kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments);
    return told(cudaGetLastError());
  });
}

}  // namespace

const char* start(const CopyTiles& call, void* stream) { return start_kernel(call, stream); }
const char* start(const BlendTiles& call, void* stream) { return start_kernel(call, stream); }

}  // namespace tiledattn::cuda
