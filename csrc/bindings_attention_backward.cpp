// Operators of the gradients of cross-tile attention on the CPU.

#include <memory>
#include <optional>

#include "bindings_attention.h"
#include "cpu/attention_backward.h"
#include "huge_pages.h"

namespace tiledattn::bindings {
namespace {

const float* read_statistics(const char* name, const Tensor& x, const AttentionCall& sizes) {
  require_on_cpu(name, x);
  require_type(name, x, ScalarType::Float);
  require_contiguous(name, x);
  require_shape(name, x, {sizes.tiles, sizes.batch, sizes.heads, sizes.sequence});
  return static_cast<const float*>(x.const_data_ptr());
}

AttentionTensor read_like_q(const char* name, const Tensor& x, const Tensor& q) {
  const AttentionTensor tokens = read_tokens(name, x, q);
  require_shape(name, x, {q.size(0), q.size(1), q.size(2), q.size(3), q.size(4)});
  return tokens;
}

void read_cells(ReversedPlan& plan, const AttentionCall& sizes, const Tensor& class_of_lender, const Tensor& starts,
                const Tensor& cells, const Tensor& tokens, const Tensor& borrowers) {
  plan.class_of = read_table<int32_t>("class_of_lender", class_of_lender, ScalarType::Int, {sizes.pool_tiles});
  plan.classes = starts.numel() - 1;
  require(plan.classes >= 1, "cell_starts: it is empty; expected an entry per class and one more");
  plan.starts = read_table<int64_t>("cell_starts", starts, ScalarType::Long, {plan.classes + 1});
  plan.cells = read_table<Cell>("cells", cells, ScalarType::Long, {plan.starts[plan.classes], 4});
  plan.all_tokens = tokens.numel(), plan.all_borrowers = borrowers.numel();
  plan.tokens = read_table<int32_t>("tokens", tokens, ScalarType::Int, {plan.all_tokens});
  plan.borrowers = read_table<int32_t>("borrowers", borrowers, ScalarType::Int, {plan.all_borrowers});
}

void* read_gradient(const char* name, const Tensor& grad, ScalarType type, const std::vector<int64_t>& shape) {
  require_on_cpu(name, grad);
  require_type(name, grad, type);
  require_contiguous(name, grad);
  require_shape(name, grad, shape);
  void* data = grad.mutable_data_ptr();
  advise_huge_pages(data, grad.numel() * (type == ScalarType::Float ? 4 : 2));
  return data;
}

void read_gradients(AttentionBackwardCall& call, const Tensor& q, const Tensor& grad_q, const Tensor& grad_k,
                    const Tensor& grad_v) {
  const AttentionCall& sizes = call.forward;
  const std::vector<int64_t> queries = {sizes.tiles, sizes.batch, sizes.sequence, sizes.heads, sizes.head_dim};
  const std::vector<int64_t> pool = {sizes.pool_tiles, sizes.batch, sizes.sequence, sizes.kv_heads, sizes.head_dim};
  call.grad_q = read_gradient("grad_q", grad_q, q.scalar_type(), queries);
  call.wide = grad_k.scalar_type() == ScalarType::Float;
  const ScalarType type = call.wide ? ScalarType::Float : q.scalar_type();
  call.grad_k = read_gradient("grad_k", grad_k, type, pool);
  call.grad_v = read_gradient("grad_v", grad_v, type, pool);
}

void cross_tile_attention_backward_cpu(Tensor grad_out, std::optional<Tensor> grad_lse, Tensor q, Tensor k, Tensor v,
                                       Tensor out, Tensor lse, std::optional<Tensor> prefix_mask, Tensor class_of_tile,
                                       Tensor run_starts, Tensor runs, Tensor class_of_lender, Tensor cell_starts,
                                       Tensor cells, Tensor tokens, Tensor borrowers, int64_t num_prefix_tokens,
                                       double halo_weight, double scale, Tensor grad_q, Tensor grad_k, Tensor grad_v) {
  AttentionBackwardCall call{};
  AttentionCall& sizes = call.forward;
  read_sizes(sizes, q, k, v);
  sizes.prefix = num_prefix_tokens;
  read_mask(sizes, prefix_mask);
  sizes.halo_weight = halo_weight;
  sizes.scale = static_cast<float>(scale);
  read_runs(sizes, class_of_tile, run_starts, runs);
  call.out = read_like_q("out", out, q), call.grad_out = read_like_q("grad_out", grad_out, q);
  call.lse = read_statistics("lse", lse, sizes);
  if (grad_lse) call.grad_lse = read_statistics("grad_lse", *grad_lse, sizes);
  read_cells(call.reversed, sizes, class_of_lender, cell_starts, cells, tokens, borrowers);
  read_gradients(call, q, grad_q, grad_k, grad_v);
  const char* error = attention_backward_error(call);
  if (error) require(false, "cross_tile_attention_backward on q ", shape_of(q), ", k ", shape_of(k), ": ", error);
  const Parallel threads = torch_threads();
  const std::unique_ptr<char[]> scratch(new char[attention_backward_scratch_bytes(call, threads.threads)]);
  attention_backward(call, scratch.get(), threads);
}

/// The most memory that a call takes besides its results and a number per query row, whatever its tables: for tests.
int64_t cross_tile_attention_backward_cpu_scratch(int64_t head_dim, int64_t threads) {
  return attention_backward_scratch_limit(head_dim, static_cast<int>(threads));
}

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_FRAGMENT(tiledattn, m) {
  m.def(
      "cross_tile_attention_backward_cpu(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, Tensor? prefix_mask, Tensor class_of_tile, Tensor run_starts, Tensor runs, Tensor class_of_lender, "
      "Tensor cell_starts, Tensor cells, Tensor tokens, Tensor borrowers, int num_prefix_tokens, float halo_weight, "
      "float scale, Tensor(a!) grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v) -> ()");
  m.def("cross_tile_attention_backward_cpu_scratch(int head_dim, int threads) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CPU, m) {
  m.impl("cross_tile_attention_backward_cpu", TORCH_BOX(&tiledattn::bindings::cross_tile_attention_backward_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CompositeExplicitAutograd, m) {
  m.impl("cross_tile_attention_backward_cpu_scratch",
         TORCH_BOX(&tiledattn::bindings::cross_tile_attention_backward_cpu_scratch));
}
