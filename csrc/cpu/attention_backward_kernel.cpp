// Gradients of queries: deltas of rows, then items like the forward's. Keys and values are packed a chunk at a time,
// and all rows of the item use them before the next chunk takes their place.

#include "cpu/attention_backward_rows.h"
#include "cpu/attention_pack.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

template <AttentionType type>
float product_of_rows(const void* a, int64_t a_at, const void* b, int64_t b_at, int64_t dim) {
  Vec sum = Vec::zero();
  for (int64_t d = 0; d < dim; d += kWidth) {
    sum = fma(load_as_floats<type>(a, a_at + d, dim - d), load_as_floats<type>(b, b_at + d, dim - d), sum);
  }
  float lanes[kWidth], total = 0.0f;
  store(lanes, sum);
  for (float lane : lanes) total += lane;
  return total;
}

/// An item's pass over its keys.
template <class Products>
class QueryPass {
 public:
  QueryPass(const AttentionBackwardCall& call, const float* deltas, const AttentionItem& item,
            const AttentionBackwardMemory& places, float* memory)
      : call_(call), sizes_(call.forward), deltas_(deltas), item_(item), at_(places), memory_(memory) {}

  void run() {
    Columns columns(sizes_, item_);
    for (int64_t done = 0; done < item_.columns; done += count_) {
      pack_chunk(columns);
      const bool last = done + count_ == item_.columns;
      for (int64_t first = 0; first < item_.rows; first += kRows) {
        const int64_t rows = smaller(kRows, item_.rows - first);
        with_vectors(rows, [&](auto vectors) { meet<decltype(vectors)::value>(first, rows, done == 0, last); });
      }
    }
  }

 private:
  int64_t padded() const { return round_up(count_, kGroup); }

  void pack_chunk(Columns& columns) {
    auto* keys = reinterpret_cast<int64_t*>(memory_ + at_.offsets);
    int64_t* values = keys + at_.chunk;
    float *shifts = memory_ + at_.shifts, *deltas = memory_ + at_.deltas;
    count_ = columns.next(at_.chunk, keys, values, shifts);
    for (int64_t key = 0; key < padded(); ++key) {
      shifts[key] = key < count_ ? 0.0f - shifts[key] : INFINITY;
      deltas[key] = 0.0f;
    }
    const int64_t dim = sizes_.head_dim;
    const void *k = sizes_.k.data, *v = sizes_.v.data;
    pack_keys<Products>(k, keys, count_, padded(), dim, at_.key_row, memory_ + at_.rows[0]);
    pack_keys<Products>(v, values, count_, padded(), dim, at_.key_row, memory_ + at_.rows[1]);
    pack_values<Products>(k, keys, count_, padded(), dim, at_.value_row, memory_ + at_.values[0]);
  }

  /// Rows first .. first + rows of the item meet the chunk; `last`: their gradients are complete.
  template <int V>
  void meet(int64_t first, int64_t rows, bool fresh, bool last) {
    constexpr int64_t lanes = V * kWidth;
    const int64_t dim = sizes_.head_dim;
    int64_t offsets[lanes];
    row_offsets(sizes_, item_, sizes_.q.stride, first, rows, offsets);
    pack_queries<Products>(sizes_.q.data, offsets, rows, lanes, dim, memory_ + at_.lanes[0]);
    row_offsets(sizes_, item_, call_.grad_out.stride, first, rows, offsets);
    pack_queries<Products>(call_.grad_out.data, offsets, rows, lanes, dim, memory_ + at_.lanes[1]);
    float *shifts = memory_ + at_.lane_shifts, *deltas = memory_ + at_.lane_deltas;
    read_rows(call_, deltas_, item_, first, rows, shifts, deltas);
    for (int64_t i = rows; i < lanes; ++i) shifts[i] = INFINITY, deltas[i] = 0.0f;
    float* sums = memory_ + at_.sums[0] + (item_.columns > at_.chunk ? first : 0) * at_.value_row;
    for (int64_t key = 0; key < padded(); key += kBlockKeys, fresh = false) {
      const GradientBlock block = gradient_block<Products>(sizes_, at_, memory_, key, padded());
      weigh_and_slope<Products, V, false>(block);
      const float* values = memory_ + at_.values[0] + key / Products::pack * at_.value_row;
      accumulate<Products, V>(block.slopes, values, block.rows, dim, fresh, sums);
    }
    if (!last) return;
    float factors[lanes];
    for (float& factor : factors) factor = sizes_.scale;
    const int64_t of_token = sizes_.heads * dim, of_batch = sizes_.sequence * of_token;
    const int64_t stride[4] = {sizes_.batch * of_batch, of_batch, of_token, dim};
    row_offsets(sizes_, item_, stride, first, rows, offsets);
    store_rows<Products>(sums, factors, offsets, rows, lanes, dim, call_.grad_q);
  }

  const AttentionBackwardCall& call_;
  const AttentionCall& sizes_;
  const float* deltas_;
  const AttentionItem& item_;
  const AttentionBackwardMemory& at_;
  float* memory_;
  int64_t count_ = 0;  // keys of the chunk
};

}  // namespace

void attention_deltas(const AttentionBackwardCall& call, int64_t begin, int64_t end, float* deltas) {
  const AttentionCall& sizes = call.forward;
  with_products(sizes.type, [&](auto products) {
    for (int64_t number = begin; number < end; ++number) {
      const int64_t token = number % sizes.sequence, entry = number / sizes.sequence;
      const int64_t place[3] = {entry / sizes.batch, entry % sizes.batch, token};
      int64_t out = 0, grad = 0;
      for (int i = 0; i < 3; ++i) out += place[i] * call.out.stride[i], grad += place[i] * call.grad_out.stride[i];
      for (int64_t head = 0; head < sizes.heads; ++head) {
        const int64_t at = (entry * sizes.heads + head) * sizes.sequence + token;
        const float product = product_of_rows<decltype(products)::type>(
            call.out.data, out + head * call.out.stride[3], call.grad_out.data, grad + head * call.grad_out.stride[3],
            sizes.head_dim);
        deltas[at] = call.grad_lse ? product - call.grad_lse[at] : product;
      }
    }
  });
}

void attention_backward_item(const AttentionBackwardCall& call, const float* deltas, const AttentionItem& item,
                             const AttentionBackwardMemory& places, float* memory) {
  with_products(call.forward.type,
                [&](auto products) { QueryPass<decltype(products)>(call, deltas, item, places, memory).run(); });
}

}  // namespace tiledattn::TILEDATTN_ISA
