// Operators of cross-tile attention on the CPU.

#include <memory>
#include <optional>

#include "bindings.h"
#include "cpu/attention.h"
#include "huge_pages.h"

namespace tiledattn::bindings {
namespace {

AttentionType attention_type(const Tensor& q) {
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
AttentionTensor read_tokens(const char* name, const Tensor& x, const Tensor& q) {
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

void read_sizes(AttentionCall& call, const Tensor& q, const Tensor& k, const Tensor& v) {
  call.type = attention_type(q);
  call.q = read_tokens("q", q, q), call.k = read_tokens("k", k, q), call.v = read_tokens("v", v, q);
  call.tiles = q.size(0), call.batch = q.size(1), call.sequence = q.size(2);
  call.heads = q.size(3), call.head_dim = q.size(4);
  call.pool_tiles = k.size(0), call.kv_heads = k.size(3);
  const std::vector<int64_t> pool = {call.pool_tiles, call.batch, call.sequence, call.kv_heads, call.head_dim};
  require_shape("k", k, pool);
  require_shape("v", v, pool);
}

void read_mask(AttentionCall& call, const std::optional<Tensor>& mask) {
  if (!mask) return;
  require_on_cpu("prefix_mask", *mask);
  require_type("prefix_mask", *mask, ScalarType::Bool);
  require_shape("prefix_mask", *mask, {call.tiles, call.batch, call.prefix});
  call.prefix_mask = static_cast<const bool*>(mask->const_data_ptr());
  for (int i = 0; i < 3; ++i) call.mask_stride[i] = mask->stride(i);
}

void read_runs(AttentionCall& call, const Tensor& class_of_tile, const Tensor& starts, const Tensor& runs) {
  call.class_of_tile = read_table<int32_t>("class_of_tile", class_of_tile, ScalarType::Int, {call.tiles});
  call.classes = starts.numel() - 1;
  require(call.classes >= 1, "run_starts: it is empty; expected an entry per class and one more");
  call.run_starts = read_table<int64_t>("run_starts", starts, ScalarType::Long, {call.classes + 1});
  const int64_t count = call.run_starts[call.classes];
  call.runs = read_table<TokenRun>("runs", runs, ScalarType::Int, {count, 2});
}

void read_results(AttentionCall& call, const Tensor& q, Tensor& out, Tensor& lse) {
  require_on_cpu("out", out);
  require_type("out", out, q.scalar_type());
  require_contiguous("out", out);
  require_shape("out", out, {call.tiles, call.batch, call.sequence, call.heads, call.head_dim});
  call.out = out.mutable_data_ptr();
  advise_huge_pages(call.out, out.numel() * (call.type == AttentionType::float32 ? 4 : 2));
  for (int i = 0; i < 4; ++i) call.out_stride[i] = out.stride(i);
  if (lse.numel() == 0) return;
  require_on_cpu("lse", lse);
  require_type("lse", lse, ScalarType::Float);
  require_contiguous("lse", lse);
  require_shape("lse", lse, {call.tiles, call.batch, call.heads, call.sequence});
  call.lse = static_cast<float*>(lse.mutable_data_ptr());
}

void cross_tile_attention_cpu(Tensor q, Tensor k, Tensor v, std::optional<Tensor> prefix_mask, Tensor class_of_tile,
                              Tensor run_starts, Tensor runs, int64_t num_prefix_tokens, double halo_weight,
                              double scale, Tensor out, Tensor lse) {
  AttentionCall call{};
  read_sizes(call, q, k, v);
  call.prefix = num_prefix_tokens;
  read_mask(call, prefix_mask);
  call.halo_weight = static_cast<float>(halo_weight);
  call.scale = static_cast<float>(scale);
  read_runs(call, class_of_tile, run_starts, runs);
  read_results(call, q, out, lse);
  const char* error = attention_error(call);
  if (error) require(false, "cross_tile_attention on q ", shape_of(q), ", k ", shape_of(k), ": ", error);
  const Parallel threads = torch_threads();
  const std::unique_ptr<char[]> scratch(new char[attention_scratch_bytes(call, threads.threads)]);
  attention(call, scratch.get(), threads);
}

/// The most memory that a call takes besides its results, whatever its tables: for tests.
int64_t cross_tile_attention_cpu_scratch(int64_t head_dim, int64_t threads) {
  return attention_scratch_limit(head_dim, static_cast<int>(threads));
}

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_FRAGMENT(tiledattn, m) {
  m.def(
      "cross_tile_attention_cpu(Tensor q, Tensor k, Tensor v, Tensor? prefix_mask, Tensor class_of_tile, "
      "Tensor run_starts, Tensor runs, int num_prefix_tokens, float halo_weight, float scale, Tensor(a!) out, "
      "Tensor(b!) lse) -> ()");
  m.def("cross_tile_attention_cpu_scratch(int head_dim, int threads) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CPU, m) {
  m.impl("cross_tile_attention_cpu", TORCH_BOX(&tiledattn::bindings::cross_tile_attention_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CompositeExplicitAutograd, m) {
  m.impl("cross_tile_attention_cpu_scratch", TORCH_BOX(&tiledattn::bindings::cross_tile_attention_cpu_scratch));
}
