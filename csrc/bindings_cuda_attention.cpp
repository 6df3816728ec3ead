// Operators of cross-tile attention on a GPU. The tables are what tiledattn/backends/cuda_attention.py makes of a plan;
// they lie on the device, so only their shapes are checked here.

#ifdef TILEDATTN_CUDA

#include <optional>

#include "bindings_cuda.h"
#include "cuda/attention.h"

namespace tiledattn::bindings {
namespace {

using cuda::AttentionArguments;
using cuda::AttentionElement;

AttentionElement element_of(const Tensor& q) {
  switch (q.scalar_type()) {
    case ScalarType::Half:
      return AttentionElement::float16;
    case ScalarType::BFloat16:
      return AttentionElement::bfloat16;
    default:
      require(q.scalar_type() == ScalarType::Float, "q: dtype is ", torch::headeronly::toString(q.scalar_type()),
              "; expected float16, bfloat16 or float32");
      return AttentionElement::float32;
  }
}

int32_t narrow(const char* name, int64_t value) {
  require(value >= 0 && value <= INT32_MAX, name, ": ", value, " is not between 0 and 2^31 - 1");
  return static_cast<int32_t>(value);
}

/// A tensor [T, B, S, H, D] of q's dtype and device, every row of it on 16 bytes.
const void* read_rows(const char* name, const Tensor& x, const Tensor& q, int64_t (&stride)[4]) {
  require_same_device(name, x, q);
  require_type(name, x, q.scalar_type());
  if (x.dim() != 5) require(false, name, ": shape is ", shape_of(x), "; expected 5 dims");
  require(x.stride(4) == 1, name, ": the last dim is strided; expected a dense one");
  const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  const int64_t chunk = q.scalar_type() == ScalarType::Float ? 4 : 8;
  bool aligned = address % 16 == 0 && x.size(4) % chunk == 0;
  for (int i = 0; i < 4; ++i) {
    stride[i] = x.size(i) == 1 ? 0 : x.stride(i);
    aligned = aligned && stride[i] % chunk == 0;
  }
  require(aligned, name, ": its rows don't lie on 16 bytes; expected strides and a head dim that are multiples of ",
          chunk);
  return x.const_data_ptr();
}

/// A table on q's device.
template <typename Entry>
const Entry* read_table(const char* name, const std::optional<Tensor>& table, ScalarType type, int64_t columns,
                        const Tensor& q) {
  if (!table) return nullptr;
  require_same_device(name, *table, q);
  require_type(name, *table, type);
  require_contiguous(name, *table);
  const bool fits = columns == 1 ? table->dim() == 1 : table->dim() == 2 && table->size(1) == columns;
  require(fits, name, ": shape is ", shape_of(*table), "; expected ", columns, " columns");
  return static_cast<const Entry*>(table->const_data_ptr());
}

void read_results(AttentionArguments& a, const Tensor& q, Tensor& out, Tensor& lse) {
  require_same_device("out", out, q);
  require_type("out", out, q.scalar_type());
  require_contiguous("out", out);
  require_shape("out", out, {a.tiles, a.batch, a.sequence, a.heads, a.head_dim});
  a.out = out.mutable_data_ptr();
  require(reinterpret_cast<uintptr_t>(a.out) % 16 == 0, "out: not aligned to 16 bytes");
  if (lse.numel() == 0) return;
  require_same_device("lse", lse, q);
  require_type("lse", lse, ScalarType::Float);
  require_contiguous("lse", lse);
  require_shape("lse", lse, {a.tiles, a.batch, a.heads, a.sequence});
  a.lse = static_cast<float*>(lse.mutable_data_ptr());
}

void read_mask(AttentionArguments& a, const std::optional<Tensor>& mask, const Tensor& q) {
  if (!mask) return;
  require_same_device("prefix_mask", *mask, q);
  require_type("prefix_mask", *mask, ScalarType::Bool);
  require_contiguous("prefix_mask", *mask);
  require_shape("prefix_mask", *mask, {a.tiles, a.batch, a.prefix});
  a.mask = static_cast<const bool*>(mask->const_data_ptr());
}

AttentionArguments read_tensors(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
                                int64_t prefix, Tensor& out, Tensor& lse) {
  require_on_cuda("q", q);
  AttentionArguments a{};
  a.q = read_rows("q", q, q, a.q_stride), a.k = read_rows("k", k, q, a.k_stride);
  a.v = read_rows("v", v, q, a.v_stride);
  a.tiles = narrow("T", q.size(0)), a.batch = narrow("B", q.size(1)), a.sequence = narrow("S", q.size(2));
  a.heads = narrow("H", q.size(3)), a.head_dim = narrow("D", q.size(4)), a.pool_tiles = narrow("T'", k.size(0));
  a.prefix = narrow("num_prefix_tokens", prefix);
  require(a.pool_tiles >= a.tiles, "k: the pool must have at least as many tiles as q");
  require(a.prefix < a.sequence, "num_prefix_tokens: got ", prefix, "; expected less than S = ", a.sequence);
  const int32_t most = q.scalar_type() == ScalarType::Float ? cuda::kMaxHeadDimFloat32 : cuda::kMaxHeadDim;
  require(a.head_dim <= most, "q: head dim ", a.head_dim, " is above ", most);
  const int64_t kv_heads = k.size(3);
  require(kv_heads >= 1 && a.heads % kv_heads == 0, "k: Hkv = ", kv_heads, " must divide H = ", a.heads);
  a.shared_by = static_cast<int32_t>(a.heads / kv_heads);
  const std::vector<int64_t> pool = {a.pool_tiles, a.batch, a.sequence, kv_heads, a.head_dim};
  require_shape("k", k, pool);
  require_shape("v", v, pool);
  read_mask(a, mask, q);
  read_results(a, q, out, lse);
  return a;
}

void read_classes(AttentionArguments& a, const std::optional<Tensor>& class_of_tile,
                  const std::optional<Tensor>& starts, bool halo, const Tensor& q) {
  a.class_of_tile = read_table<int32_t>("class_of_tile", class_of_tile, ScalarType::Int, 1, q);
  a.starts = read_table<int64_t>("starts", starts, ScalarType::Long, 1, q);
  if (!halo) return;
  require(class_of_tile && starts, "halo: given without class_of_tile and starts");
  require_shape("class_of_tile", *class_of_tile, {a.tiles});
}

void read_numbers(AttentionArguments& a, double scale, double halo_shift) {
  require(scale >= 0, "scale: got ", scale, "; expected no negative number (q may be negated)");
  a.scale = static_cast<float>(scale), a.halo_shift = static_cast<float>(halo_shift);
}

void require_started(const char* op, const char* error, const Tensor& q, const Tensor& k) {
  if (error) require(false, op, " on q ", shape_of(q), ", k ", shape_of(k), ": ", error);
}

void cross_tile_attention_cuda(Tensor q, Tensor k, Tensor v, std::optional<Tensor> prefix_mask,
                               std::optional<Tensor> class_of_tile, std::optional<Tensor> starts,
                               std::optional<Tensor> halo, int64_t num_prefix_tokens, double scale, double halo_shift,
                               Tensor out, Tensor lse) {
  const AttentionElement element = element_of(q);
  AttentionArguments a = read_tensors(q, k, v, prefix_mask, num_prefix_tokens, out, lse);
  a.halo = read_table<cuda::HaloToken>("halo", halo, ScalarType::Int, 2, q);
  read_classes(a, class_of_tile, starts, a.halo != nullptr, q);
  read_numbers(a, scale, halo_shift);
  if (out.numel() == 0) return;
  const OnDevice device(q);
  require_started("cross_tile_attention", cuda::launch_attention_sm80(a, element, device.stream()), q, k);
}

#ifdef TILEDATTN_SM90
void cross_tile_attention_cuda_sm90(Tensor q, Tensor k, Tensor v, std::optional<Tensor> prefix_mask,
                                    std::optional<Tensor> class_of_tile, std::optional<Tensor> starts,
                                    std::optional<Tensor> boxes, Tensor longest_first, int64_t rows, int64_t columns,
                                    int64_t box_rows, int64_t box_columns, int64_t num_prefix_tokens, double scale,
                                    double halo_shift, Tensor out, Tensor lse) {
  const AttentionElement element = element_of(q);
  AttentionArguments a = read_tensors(q, k, v, prefix_mask, num_prefix_tokens, out, lse);
  cuda::HaloBoxes halo{};
  halo.boxes = read_table<cuda::HaloBox>("boxes", boxes, ScalarType::Int, 4, q);
  read_classes(a, class_of_tile, starts, halo.boxes != nullptr, q);
  read_numbers(a, scale, halo_shift);
  halo.longest_first = read_table<int32_t>("longest_first", longest_first, ScalarType::Int, 1, q);
  require_shape("longest_first", longest_first, {a.tiles});
  halo.rows = narrow("rows", rows), halo.columns = narrow("columns", columns);
  halo.box_rows = narrow("box_rows", box_rows), halo.box_columns = narrow("box_columns", box_columns);
  halo.tokens_per_box = narrow("box_rows * box_columns", box_rows * box_columns);
  if (out.numel() == 0) return;
  const OnDevice device(q);
  require_started("cross_tile_attention", cuda::launch_attention_sm90(a, halo, element, device.stream()), q, k);
}
#endif

}  // namespace
}  // namespace tiledattn::bindings

STABLE_TORCH_LIBRARY_FRAGMENT(tiledattn, m) {
  m.def(
      "cross_tile_attention_cuda(Tensor q, Tensor k, Tensor v, Tensor? prefix_mask, Tensor? class_of_tile, "
      "Tensor? starts, Tensor? halo, int num_prefix_tokens, float scale, float halo_shift, Tensor(a!) out, "
      "Tensor(b!) lse) -> ()");
#ifdef TILEDATTN_SM90
  m.def(
      "cross_tile_attention_cuda_sm90(Tensor q, Tensor k, Tensor v, Tensor? prefix_mask, Tensor? class_of_tile, "
      "Tensor? starts, Tensor? boxes, Tensor longest_first, int rows, int columns, int box_rows, int box_columns, "
      "int num_prefix_tokens, float scale, float halo_shift, Tensor(a!) out, Tensor(b!) lse) -> ()");
#endif
}

STABLE_TORCH_LIBRARY_IMPL(tiledattn, CUDA, m) {
  m.impl("cross_tile_attention_cuda", TORCH_BOX(&tiledattn::bindings::cross_tile_attention_cuda));
#ifdef TILEDATTN_SM90
  m.impl("cross_tile_attention_cuda_sm90", TORCH_BOX(&tiledattn::bindings::cross_tile_attention_cuda_sm90));
#endif
}

#endif
