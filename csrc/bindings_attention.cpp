// Operators of cross-tile attention on the CPU.

#include <memory>

#include "bindings_attention.h"
#include "huge_pages.h"

namespace tiledattn::bindings {
namespace {

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
  call.halo_weight = halo_weight;
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
