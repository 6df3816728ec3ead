// Shapes and launches of the sm_80 kernel.

#include "cuda/attention_sm80.cuh"
#include "cuda/errors.h"

namespace tiledattn::cuda {
namespace {

template <typename S>
const char* launch(const AttentionArguments& a, cudaStream_t stream) {
  const int64_t row_blocks = (a.sequence + S::kRows - 1) / S::kRows;
  const int64_t blocks = row_blocks * a.tiles * a.heads * a.batch;
  if (blocks > INT32_MAX) return "more than 2^31 - 1 blocks of queries; split the canvas";
  const auto kernel = sm80::attention_fwd<S>;
  // of the device that is current: cheap, and nothing that a captured graph minds
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(S::kSharedBytes));
  if (error == cudaSuccess) {
    kernel<<<static_cast<unsigned>(blocks), S::kThreads, S::kSharedBytes, stream>>>(a);
    error = cudaGetLastError();
  }
  return told(error);
}

template <typename T>
const char* launch_for(const AttentionArguments& a, cudaStream_t stream) {
  if (a.head_dim <= 64) return launch<sm80::ShapeFor<T, 64>>(a, stream);
  if (a.head_dim <= 128) return launch<sm80::ShapeFor<T, 128>>(a, stream);
  if constexpr (sizeof(T) == 2) return launch<sm80::ShapeFor<T, 256>>(a, stream);
  return "float32 with head dims above 128 has no kernel";
}

}  // namespace

const char* launch_attention_sm80(const AttentionArguments& a, AttentionElement element, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  switch (element) {
    case AttentionElement::float16:
      return launch_for<Half>(a, on);
    case AttentionElement::bfloat16:
      return launch_for<Brain>(a, on);
    default:
      return launch_for<float>(a, on);
  }
}

}  // namespace tiledattn::cuda
