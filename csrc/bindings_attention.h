// What the operators of cross-tile attention on the CPU and its gradients read alike.
#pragma once

#include <optional>
#include <vector>

#include "bindings.h"
#include "cpu/attention.h"

namespace tiledattn::bindings {

inline AttentionType attention_type(const Tensor& q) {
  switch (q.scalar_type()) {
    case ScalarType::Float:
      return AttentionType::float32;
    case ScalarType::Half:
      return AttentionType::float16;
    case ScalarType::BFloat16:
      return AttentionType::bfloat16;
    default:
      require(false, "q: dtype is ", torch::headeronly::toString(q.scalar_type()),
              "; expected float16, bfloat16 or float32");
      return AttentionType::float32;
  }
}

/// A tensor [T, B, S, H, D] of q's dtype with a dense last dim.
inline AttentionTensor read_tokens(const char* name, const Tensor& x, const Tensor& q) {
  require_on_cpu(name, x);
  require_type(name, x, q.scalar_type());
  if (x.dim() != 5) require(false, name, ": shape is ", shape_of(x), "; expected 5 dims");
  require(x.size(4) == 1 || x.stride(4) == 1, name, ": the last dim is strided; expected a dense one");
  return {x.const_data_ptr(), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}};
}

/// An integer table of the plan.
template <typename Entry>
const Entry* read_table(const char* name, const Tensor& table, ScalarType type, const std::vector<int64_t>& shape) {
  require_on_cpu(name, table);
  require_type(name, table, type);
  require_contiguous(name, table);
  require_shape(name, table, shape);
  return static_cast<const Entry*>(table.const_data_ptr());
}

inline void read_sizes(AttentionCall& call, const Tensor& q, const Tensor& k, const Tensor& v) {
  call.type = attention_type(q);
  call.q = read_tokens("q", q, q), call.k = read_tokens("k", k, q), call.v = read_tokens("v", v, q);
  call.tiles = q.size(0), call.batch = q.size(1), call.sequence = q.size(2);
  call.heads = q.size(3), call.head_dim = q.size(4);
  call.pool_tiles = k.size(0), call.kv_heads = k.size(3);
  const std::vector<int64_t> pool = {call.pool_tiles, call.batch, call.sequence, call.kv_heads, call.head_dim};
  require_shape("k", k, pool);
  require_shape("v", v, pool);
}

inline void read_mask(AttentionCall& call, const std::optional<Tensor>& mask) {
  if (!mask) return;
  require_on_cpu("prefix_mask", *mask);
  require_type("prefix_mask", *mask, ScalarType::Bool);
  require_shape("prefix_mask", *mask, {call.tiles, call.batch, call.prefix});
  call.prefix_mask = static_cast<const bool*>(mask->const_data_ptr());
  for (int i = 0; i < 3; ++i) call.mask_stride[i] = mask->stride(i);
}

inline void read_runs(AttentionCall& call, const Tensor& class_of_tile, const Tensor& starts, const Tensor& runs) {
  call.class_of_tile = read_table<int32_t>("class_of_tile", class_of_tile, ScalarType::Int, {call.tiles});
  call.classes = starts.numel() - 1;
  require(call.classes >= 1, "run_starts: it is empty; expected an entry per class and one more");
  call.run_starts = read_table<int64_t>("run_starts", starts, ScalarType::Long, {call.classes + 1});
  const int64_t count = call.run_starts[call.classes];
  call.runs = read_table<TokenRun>("runs", runs, ScalarType::Int, {count, 2});
}

}  // namespace tiledattn::bindings
