// What is packed next, brought into the second-level cache while products are made: else packing would wait for
// each row.
#pragma once

#include "cpu/attention_pack.h"
#include "cpu/attention_rows.h"

namespace tiledattn::TILEDATTN_ISA {

/// What follows a chunk of an item's keys: the rows of q block by block, and the next chunk's keys and values, a few at
/// a time; during the last chunk those of the item that is likely to be next, if any. Products in matrix registers gain
/// nothing.
template <class Products>
class Upcoming {
 public:
  /// `columns` are at the end of the chunk, of `count` keys; chunks have at most `chunk`. `next` may be null.
  Upcoming(const AttentionCall& call, const AttentionItem& item, const AttentionItem* next, const Columns& columns,
           bool last, int64_t count, int64_t chunk)
      : call_(call), item_(item), next_(next), columns_(last && next ? Columns(call, *next) : columns), last_(last) {
    const auto blocks = [](int64_t n, int64_t of) { return (n + of - 1) / of; };
    const int64_t steps = blocks(item.rows, Products::rows) * blocks(count, Products::keys);
    left_ = last && !next ? 0 : chunk;
    step_ = smaller(blocks(chunk, larger(steps, 1)), kBlockKeys);
  }

  /// The rows of q after the block that begins with row `first`.
  void fetch_queries(int64_t first) const {
    if constexpr (Products::matrices) return;
    const bool same = first + Products::rows < item_.rows;
    if (!same && !(last_ && next_)) return;
    const AttentionItem& item = same ? item_ : *next_;
    const int64_t begin = same ? first + Products::rows : 0, rows = smaller(Products::rows, item.rows - begin);
    int64_t offsets[kRows];
    row_offsets(call_, item, call_.q.stride, begin, rows, offsets);
    for (int64_t i = 0; i < rows; ++i) fetch_ahead<Products, 2>(call_.q.data, offsets[i], call_.head_dim);
  }

  /// Some of the keys and values, after each block of keys that a block of rows has met.
  void fetch_keys() {
    if (left_ <= 0) return;
    int64_t keys[kBlockKeys], values[kBlockKeys];
    float bias[kBlockKeys];
    const int64_t count = columns_.next(smaller(step_, left_), keys, values, bias);
    for (int64_t i = 0; i < count; ++i) {
      fetch_ahead<Products, 2>(call_.k.data, keys[i], call_.head_dim);
      fetch_ahead<Products, 2>(call_.v.data, values[i], call_.head_dim);
    }
    left_ = count > 0 ? left_ - count : 0;
  }

 private:
  const AttentionCall& call_;
  const AttentionItem& item_;
  const AttentionItem* next_;
  Columns columns_;
  bool last_;
  int64_t left_, step_;
};

}  // namespace tiledattn::TILEDATTN_ISA
