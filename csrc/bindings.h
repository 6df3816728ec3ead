// What the bindings share: errors, torch's threads, and reading tensors.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/parallel.h"

namespace tiledattn::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// Raises what Python sees as a RuntimeError. Arguments are checked at the public edge already; these are the checks
/// without which a mistake would read or write foreign memory. Parts are put together in any case: texts that take long
/// to make belong behind an `if`.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ']';
  return text.str();
}

inline std::string text_of(const std::vector<int64_t>& values) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < values.size(); ++i) text << (i ? ", " : "") << values[i];
  text << ']';
  return text.str();
}

inline void require_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(static_cast<int64_t>(i)) == expected[i];
  if (same) return;  // before the message is put together
  require(false, name, ": shape is ", shape_of(tensor), "; expected ", text_of(expected));
}

inline void require_on_cpu(const char* name, const Tensor& tensor) {
  require(tensor.is_cpu(), name, ": not on the CPU; move it there");
}

inline void require_type(const char* name, const Tensor& tensor, ScalarType expected) {
  require(tensor.scalar_type() == expected, name, ": dtype is ", torch::headeronly::toString(tensor.scalar_type()),
          "; expected ", torch::headeronly::toString(expected));
}

inline void require_contiguous(const char* name, const Tensor& tensor) {
  require(tensor.is_contiguous(), name, ": not contiguous; expected a contiguous tensor");
}

/// Torch's own threads.
inline Parallel torch_threads() {
  const auto run = [](int64_t count, int64_t grain, Parallel::Body body, void* context) {
    torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
  };
  return {run, static_cast<int>(torch::stable::get_num_threads())};
}

}  // namespace tiledattn::bindings
