// Gradients of keys and values: a panel of one tile's tokens meets the queries of the tile itself, then of each
// borrower. Queries are packed a chunk at a time; the tokens that a borrower sees form dense blocks of lanes, whose
// sums are added to those of the panel.

#include "cpu/attention_backward_rows.h"
#include "cpu/attention_pack.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

/// Place of the first entry of an ascending array that is not below `value`.
inline int64_t first_not_below(const int32_t* entries, int64_t count, int64_t value) {
  int64_t low = 0;
  while (count > 0) {
    const int64_t half = count / 2;
    if (entries[low + half] < value) {
      low += half + 1, count -= half + 1;
    } else {
      count = half;
    }
  }
  return low;
}

/// The borrowers of a lender.
class Borrowers {
 public:
  Borrowers(const ReversedPlan& plan, int64_t lender) : plan_(plan) {
    cell_ = plan.starts[plan.class_of[lender]], last_ = plan.starts[plan.class_of[lender] + 1];
  }

  /// The lowest `borrower - lender` from `least` on; false if there is none.
  bool next(int64_t least, int64_t* delta) const {
    bool found = false;
    for (int64_t c = cell_; c < last_; ++c) {
      const Cell& cell = plan_.cells[c];
      const int32_t* borrowers = plan_.borrowers + cell.first_borrower;
      const int64_t at = first_not_below(borrowers, cell.borrowers, least);
      if (at == cell.borrowers || (found && borrowers[at] >= *delta)) continue;
      *delta = borrowers[at];
      found = true;
    }
    return found;
  }

 private:
  const ReversedPlan& plan_;
  int64_t cell_, last_;
};

/// The tokens of a panel that the queries of one tile see: all for the lender's own, else those of its cells.
class SeenTokens {
 public:
  SeenTokens(const AttentionBackwardCall& call, const KeyItem& item, int64_t delta)
      : plan_(call.reversed), item_(item), prefix_(call.forward.prefix), delta_(delta) {
    if (delta == 0) return;
    const int64_t of_class = plan_.class_of[item.lender];
    cell_ = plan_.starts[of_class], last_ = plan_.starts[of_class + 1];
  }

  /// The next ones, at most `most` of them, as numbers within the panel. Returns how many.
  int64_t next(int64_t most, int64_t* tokens) {
    int64_t count = 0;
    for (; delta_ == 0 && count < most && own_ < item_.tokens; ++count) tokens[count] = own_++;
    for (; count < most && cell_ < last_; ++cell_, within_ = 0) {
      const Cell& cell = plan_.cells[cell_];
      if (within_ == 0 && !lends(cell)) continue;
      while (count < most && within_ < cell.tokens) {
        const int64_t token = prefix_ + plan_.tokens[cell.first_token + within_++] - item_.first_token;
        if (token >= 0 && token < item_.tokens) tokens[count++] = token;
      }
      if (within_ < cell.tokens) break;
    }
    return count;
  }

 private:
  bool lends(const Cell& cell) const {
    const int32_t* borrowers = plan_.borrowers + cell.first_borrower;
    const int64_t at = first_not_below(borrowers, cell.borrowers, delta_);
    return at < cell.borrowers && borrowers[at] == delta_;
  }

  const ReversedPlan& plan_;
  const KeyItem& item_;
  int64_t prefix_, delta_;
  int64_t own_ = 0, cell_ = 0, last_ = 0, within_ = 0;
};

/// An item's pass over the queries that see it.
template <class Products>
class KeyPass {
 public:
  KeyPass(const AttentionBackwardCall& call, const float* deltas, const KeyItem& item,
          const AttentionBackwardMemory& places, float* memory)
      : call_(call), sizes_(call.forward), deltas_(deltas), item_(item), at_(places), memory_(memory) {}

  void run() {
    for (int64_t total : at_.totals) {
      for (int64_t i = 0; i < item_.tokens * at_.value_row; i += kWidth) store(memory_ + total + i, Vec::zero());
    }
    if (item_.lender < sizes_.tiles) meet_tile(0);
    if (sizes_.halo_weight > 0.0) {
      const Borrowers borrowers(call_.reversed, item_.lender);
      int64_t delta = 0;
      for (int64_t least = -item_.lender; borrowers.next(least, &delta); least = delta + 1) {
        if (delta != 0) meet_tile(delta);
      }
    }
    store_totals(at_.totals[0], sizes_.scale, call_.grad_k);
    store_totals(at_.totals[1], 1.0f, call_.grad_v);
  }

 private:
  int64_t padded() const { return round_up(count_, kGroup); }

  /// The queries of tile lender + delta: all of its own tile, canvas tokens of a borrower.
  void meet_tile(int64_t delta) {
    int64_t tokens[kRows];
    if (SeenTokens(call_, item_, delta).next(1, tokens) == 0) return;
    AttentionItem rows = {};
    rows.tile = item_.lender + delta, rows.batch = item_.batch, rows.kv_head = item_.kv_head;
    rows.first_token = delta == 0 ? 0 : sizes_.prefix;
    rows.tokens = sizes_.sequence - rows.first_token;
    rows.rows = rows.tokens * (sizes_.heads / sizes_.kv_heads);
    for (int64_t first = 0; first < rows.rows; first += count_) {
      count_ = smaller(at_.chunk, rows.rows - first);
      pack_chunk(rows, first, delta == 0 ? 0.0f : halo_bias(sizes_));
      SeenTokens seen(call_, item_, delta);
      for (int64_t count = seen.next(kRows, tokens); count > 0; count = seen.next(kRows, tokens)) {
        with_vectors(count, [&](auto vectors) { meet<decltype(vectors)::value>(count, tokens); });
      }
    }
  }

  void pack_chunk(const AttentionItem& rows, int64_t first, float bias) {
    auto* offsets = reinterpret_cast<int64_t*>(memory_ + at_.offsets);
    const AttentionTensor* tensors[2] = {&sizes_.q, &call_.grad_out};
    for (int kind = 0; kind < 2; ++kind) {
      const AttentionTensor& x = *tensors[kind];
      row_offsets(sizes_, rows, x.stride, first, count_, offsets);
      pack_keys<Products>(x.data, offsets, count_, padded(), sizes_.head_dim, at_.key_row, memory_ + at_.rows[kind]);
      pack_values<Products>(x.data, offsets, count_, padded(), sizes_.head_dim, at_.value_row,
                            memory_ + at_.values[kind]);
    }
    float *shifts = memory_ + at_.shifts, *deltas = memory_ + at_.deltas;
    read_rows(call_, deltas_, rows, first, count_, shifts, deltas);
    for (int64_t row = 0; row < count_; ++row) shifts[row] -= bias;
    for (int64_t row = count_; row < padded(); ++row) shifts[row] = INFINITY, deltas[row] = 0.0f;
  }

  /// Tokens of the panel meet the chunk.
  template <int V>
  void meet(int64_t count, const int64_t* tokens) {
    constexpr int64_t lanes = V * kWidth;
    const int64_t dim = sizes_.head_dim;
    pack_lanes(sizes_.k, count, lanes, tokens, memory_ + at_.lanes[0]);
    pack_lanes(sizes_.v, count, lanes, tokens, memory_ + at_.lanes[1]);
    for (int64_t i = 0; i < lanes; ++i) {
      const bool seen = i < count && !hidden(sizes_, item_.lender, item_.batch, item_.first_token + tokens[i]);
      memory_[at_.lane_shifts + i] = seen ? 0.0f : INFINITY;
      memory_[at_.lane_deltas + i] = 0.0f;
    }
    float* const sums[2] = {memory_ + at_.sums[0], memory_ + at_.sums[1]};
    for (int64_t row = 0; row < padded(); row += kBlockKeys) {
      const GradientBlock block = gradient_block<Products>(sizes_, at_, memory_, row, padded());
      weigh_and_slope<Products, V, true>(block);
      const int64_t values = row / Products::pack * at_.value_row;
      accumulate<Products, V>(block.slopes, memory_ + at_.values[0] + values, block.rows, dim, row == 0, sums[0]);
      accumulate<Products, V>(block.weights, memory_ + at_.values[1] + values, block.rows, dim, row == 0, sums[1]);
    }
    for (int kind = 0; kind < 2; ++kind) add_rows(sums[kind], lanes, count, tokens, memory_ + at_.totals[kind]);
  }

  void pack_lanes(const AttentionTensor& x, int64_t count, int64_t lanes, const int64_t* tokens, float* packed) const {
    const int64_t base = item_.lender * x.stride[0] + item_.batch * x.stride[1] + item_.kv_head * x.stride[3];
    int64_t offsets[kRows];
    for (int64_t i = 0; i < count; ++i) offsets[i] = base + (item_.first_token + tokens[i]) * x.stride[2];
    pack_queries<Products>(x.data, offsets, count, lanes, sizes_.head_dim, packed);
  }

  /// Adds a block's sums, transposed back, to those of its tokens.
  void add_rows(const float* sums, int64_t lanes, int64_t count, const int64_t* tokens, float* totals) const {
    for (int64_t first = 0; first < count; first += kWidth) {
      for (int64_t d = 0; d < sizes_.head_dim; d += kWidth) {
        Vec square[kWidth];
        for (int64_t i = 0; i < kWidth; ++i) square[i] = load(sums + (d + i) * lanes + first);
        transpose(square);
        for (int64_t i = 0; i < smaller(kWidth, count - first); ++i) {
          float* at = totals + tokens[first + i] * at_.value_row + d;
          store(at, load(at) + square[i]);
        }
      }
    }
  }

  void store_totals(int64_t place, float factor, void* grad) const {
    const int64_t dim = sizes_.head_dim;
    const int64_t entry = (item_.lender * sizes_.batch + item_.batch) * sizes_.sequence + item_.first_token;
    for (int64_t token = 0; token < item_.tokens; ++token) {
      const int64_t at = ((entry + token) * sizes_.kv_heads + item_.kv_head) * dim;
      for (int64_t d = 0; d < dim; d += kWidth) {
        const Vec x = load(memory_ + place + token * at_.value_row + d) * Vec::all(factor);
        if (call_.wide) {
          store_from_floats<AttentionType::float32>(grad, at + d, x, dim - d);
        } else {
          store_from_floats<Products::type>(grad, at + d, x, dim - d);
        }
      }
    }
  }

  const AttentionBackwardCall& call_;
  const AttentionCall& sizes_;
  const float* deltas_;
  const KeyItem& item_;
  const AttentionBackwardMemory& at_;
  float* memory_;
  int64_t count_ = 0;  // rows of the chunk
};

}  // namespace

void attention_backward_item(const AttentionBackwardCall& call, const float* deltas, const KeyItem& item,
                             const AttentionBackwardMemory& places, float* memory) {
  with_products(call.forward.type,
                [&](auto products) { KeyPass<decltype(products)>(call, deltas, item, places, memory).run(); });
}

}  // namespace tiledattn::TILEDATTN_ISA
