#include "cuda/device.h"

#include <cuda_runtime.h>

namespace tiledattn::cuda {
namespace {

__global__ void nothing() {}

}  // namespace

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

const char* launch_error() {
  nothing<<<1, 1>>>();
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace tiledattn::cuda
