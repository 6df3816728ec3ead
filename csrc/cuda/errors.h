// The CUDA runtime's errors in its words.
#pragma once

#include <cuda_runtime.h>

namespace tiledattn::cuda {

/// Null, or the runtime's words for an error, which is forgotten then: the check after the next launch would find it.
inline const char* told(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

}  // namespace tiledattn::cuda
