// Where the tokens lie that an item reads and writes: keys in the order of the plan, and rows of queries.
#pragma once

#include <cmath>

#include "cpu/attention_elements.h"

namespace tiledattn::TILEDATTN_ISA {

constexpr int64_t kRows = VectorBlocks::rows;
constexpr int kVectors = kRows / kWidth;

template <int n>
struct Count {
  static constexpr int value = n;
};

/// Calls body(Count<vectors>) with the number of vectors that hold `lanes`, at most kVectors.
template <class Body>
inline void with_vectors(int64_t lanes, const Body& body) {
  const int64_t vectors = (lanes + kWidth - 1) / kWidth;
  if (vectors <= 1) return body(Count<1>{});
  if (kVectors == 2 || vectors == 2) return body(Count<2>{});
  if constexpr (kVectors == 3) return body(Count<3>{});
  if constexpr (kVectors == 4) return vectors == 3 ? body(Count<3>{}) : body(Count<4>{});
}

constexpr float kLog2E = 1.44269504088896341f;

/// Whether a token of a tile's sequence is a prefix token that nobody may see.
inline bool hidden(const AttentionCall& call, int64_t tile, int64_t batch, int64_t token) {
  if (token >= call.prefix || !call.prefix_mask) return false;
  const int64_t* stride = call.mask_stride;
  return !call.prefix_mask[tile * stride[0] + batch * stride[1] + token * stride[2]];
}

/// What is added to the logits of halo keys, in base 2.
inline float halo_bias(const AttentionCall& call) {
  return call.halo_weight == 1.0 ? 0.0f : static_cast<float>(std::log2(call.halo_weight));
}

/// The keys of an item in order: own tokens, then the runs of the halo.
class Columns {
 public:
  Columns(const AttentionCall& call, const AttentionItem& item)
      : call_(call), item_(item), canvas_(call.sequence - call.prefix) {
    const int64_t of_class = call.class_of_tile[item.tile];
    if (item.sees_halo) run_ = call.run_starts[of_class], last_run_ = call.run_starts[of_class + 1];
    key_base_ = item.batch * call.k.stride[1] + item.kv_head * call.k.stride[3];
    value_base_ = item.batch * call.v.stride[1] + item.kv_head * call.v.stride[3];
  }

  /// The next keys, at most `most` of them: offsets into k and v, and the bias in base 2. Returns how many.
  int64_t next(int64_t most, int64_t* keys, int64_t* values, float* bias) {
    int64_t count = 0;
    for (; count < most && own_ < call_.sequence; ++count, ++own_) {
      place(item_.tile, own_, keys + count, values + count);
      bias[count] = hidden(call_, item_.tile, item_.batch, own_) ? -INFINITY : 0.0f;
    }
    const float halo = halo_bias(call_);
    while (count < most && run_ < last_run_) {
      const TokenRun run = call_.runs[run_];
      const int64_t flat = item_.tile * canvas_ + run.start;
      const int64_t tile = flat / canvas_, token = call_.prefix + flat % canvas_;
      for (; count < most && within_run_ < run.length; ++count, ++within_run_) {
        place(tile, token + within_run_, keys + count, values + count);
        bias[count] = halo;
      }
      if (within_run_ == run.length) ++run_, within_run_ = 0;
    }
    return count;
  }

 private:
  void place(int64_t tile, int64_t token, int64_t* key, int64_t* value) const {
    *key = key_base_ + tile * call_.k.stride[0] + token * call_.k.stride[2];
    *value = value_base_ + tile * call_.v.stride[0] + token * call_.v.stride[2];
  }

  const AttentionCall& call_;
  const AttentionItem& item_;
  int64_t canvas_, key_base_, value_base_;
  int64_t own_ = 0, run_ = 0, last_run_ = 0, within_run_ = 0;
};

/// Element offsets of the item's rows first .. first + count in a tensor of queries.
inline void row_offsets(const AttentionCall& call, const AttentionItem& item, const int64_t* stride, int64_t first,
                        int64_t count, int64_t* offsets) {
  const int64_t head = item.kv_head * (call.heads / call.kv_heads);
  const int64_t base = item.tile * stride[0] + item.batch * stride[1];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = item.first_row + first + i;
    offsets[i] = base + (item.first_token + row % item.tokens) * stride[2] + (head + row / item.tokens) * stride[3];
  }
}

}  // namespace tiledattn::TILEDATTN_ISA
