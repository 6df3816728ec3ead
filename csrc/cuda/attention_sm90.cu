// Tensor maps, shapes and launches of the sm_90a kernel.

#include "cuda/attention_sm90.cuh"
#include "cuda/errors.h"

namespace tiledattn::cuda {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// The driver's function, found at run time: the library is not linked to the driver.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  const char* name = "cuTensorMapEncodeTiled";
#if CUDART_VERSION < 12050
  const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &status);
#else
  const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status);
#endif
  if (told(error) || status != cudaDriverEntryPointSuccess) return nullptr;
  return reinterpret_cast<Encode>(found);
}

bool encode(Encode how, const BoxedTensor& tensor, AttentionElement element, CUtensorMap& map) {
  const auto type =
      element == AttentionElement::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint32_t every[5] = {1, 1, 1, 1, 1};
  cuuint64_t size[5], stride[4];
  cuuint32_t box[5];
  for (int i = 0; i < 5; ++i) size[i] = tensor.size[i], box[i] = tensor.box[i];
  for (int i = 0; i < 4; ++i) stride[i] = tensor.stride[i + 1];
  return how(&map, type, 5, const_cast<void*>(tensor.data), size, stride, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <typename S>
bool make_maps(const AttentionArguments& a, const HaloBoxes& halo, AttentionElement element, sm90::TensorMaps& maps) {
  const Encode how = find_encode();
  if (how == nullptr) return false;
  const int64_t kv_heads = a.heads / a.shared_by;
  const BoxedTensor q = boxed_tokens(a.q, a.head_dim, a.tiles, a.batch, a.sequence, a.heads, a.q_stride, S::kRows);
  bool made = encode(how, q, element, maps.q);
  const auto pool = [&](const void* data, const int64_t (&stride)[4], CUtensorMap& own, CUtensorMap& boxes) {
    const BoxedTensor tokens =
        boxed_tokens(data, a.head_dim, a.pool_tiles, a.batch, a.sequence, kv_heads, stride, S::kKeys);
    made = made && encode(how, tokens, element, own);
    if (halo.boxes != nullptr) made = made && encode(how, boxed_canvas(data, a, halo, stride), element, boxes);
  };
  pool(a.k, a.k_stride, maps.k, maps.k_boxes);
  pool(a.v, a.v_stride, maps.v, maps.v_boxes);
  return made;
}

template <typename S>
const char* launch(const AttentionArguments& a, const HaloBoxes& halo, AttentionElement element, cudaStream_t stream) {
  const int64_t tasks = int64_t{(a.sequence + S::kRows - 1) / S::kRows} * a.tiles * a.heads * a.batch;
  if (tasks > INT32_MAX) return "more than 2^31 - 1 blocks of queries; split the canvas";
  sm90::TensorMaps maps{};
  if (!make_maps<S>(a, halo, element, maps)) return "the driver can't describe these tensors to the copy engine";
  const auto kernel = sm90::attention_fwd<S>;
  int device = 0, multiprocessors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  }
  if (error == cudaSuccess) {
    const auto blocks = static_cast<unsigned>(tasks < multiprocessors ? tasks : multiprocessors);
    kernel<<<blocks, S::kThreads, S::kSharedBytes, stream>>>(a, halo, maps);
    error = cudaGetLastError();
  }
  return told(error);
}

template <typename T>
const char* launch_for(const AttentionArguments& a, const HaloBoxes& halo, AttentionElement element,
                       cudaStream_t stream) {
  if (a.head_dim <= 64) return launch<sm90::Shape<T, 64>>(a, halo, element, stream);
  return launch<sm90::Shape<T, 128>>(a, halo, element, stream);
}

}  // namespace

const char* launch_attention_sm90(const AttentionArguments& a, const HaloBoxes& halo, AttentionElement element,
                                  void* stream) {
  if (element == AttentionElement::float32) return "float32 has no sm_90a kernel";
  if (a.head_dim > 128) return "head dims above 128 have no sm_90a kernel";
  const char* error = boxes_error(a, halo);
  if (error) return error;
  const auto on = static_cast<cudaStream_t>(stream);
  return element == AttentionElement::bfloat16 ? launch_for<Brain>(a, halo, element, on)
                                               : launch_for<Half>(a, halo, element, on);
}

}  // namespace tiledattn::cuda
