#include "cuda/device.h"

#include <cuda_runtime.h>

#include "cuda/errors.h"

namespace tiledattn::cuda {
namespace {

__global__ void nothing() {}

}  // namespace

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

const char* device_error() {
  cudaFuncAttributes attributes;
  return told(cudaFuncGetAttributes(&attributes, nothing));
}

}  // namespace tiledattn::cuda
