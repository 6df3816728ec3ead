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

const char* device_error() {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, nothing);
  cudaGetLastError();  // told here, and not to whoever asks next
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace tiledattn::cuda
