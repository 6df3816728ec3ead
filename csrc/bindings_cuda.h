// Where a kernel is to run: the tensors' device, and torch's current stream there.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "bindings.h"
#include "cuda/stream.h"

namespace tiledattn::bindings {

inline void require_on_cuda(const char* name, const Tensor& tensor) {
  require(tensor.is_cuda(), name, ": not on a CUDA device; move it there");
}

inline void require_same_device(const char* name, const Tensor& tensor, const Tensor& other) {
  require_on_cuda(name, tensor);
  require(tensor.get_device_index() == other.get_device_index(), name, ": on cuda:", tensor.get_device_index(),
          "; expected cuda:", other.get_device_index());
}

/// Makes a tensor's device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    require(cuda::current_stream(tensor.get_device_index(), &stream_),
            "torch gave no stream of cuda:", tensor.get_device_index());
  }

  /// The current stream, a cudaStream_t.
  void* stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};

}  // namespace tiledattn::bindings
