// What the schedule (csrc/attention_backward.cpp) and the kernels of the gradients share: items, and where an item's
// memory lies.
#pragma once

#include "cpu/attention_backward.h"
#include "cpu/attention_item.h"

namespace tiledattn {

/// Keys of one item, whose sums are kept while all queries that see them pass by.
constexpr int64_t kPanelKeys = 512;

/// Tokens of a tile of the pool (prefix and canvas), for one batch entry and key/value head.
struct KeyItem {
  int64_t lender, batch, kv_head;
  int64_t first_token, tokens;
};

/// Sizes and places in floats (or 32-bit pairs) of one thread's memory. Rows of two kinds are packed a chunk at a time
/// and meet lanes of two kinds: keys and values meet queries and gradients of the output, or the other way round.
struct AttentionBackwardMemory {
  int64_t chunk;                                        // rows packed at once
  int64_t key_row;                                      // packed elements of a row, each a float or a pair
  int64_t value_row;                                    // head dim, padded to groups
  int64_t blocks;                                       // blocks of lanes whose sums are kept
  int64_t rows[2], values[2], offsets, shifts, deltas;  // of the chunk
  int64_t lanes[2], lane_shifts, lane_deltas;           // of a block of lanes
  int64_t weights, slopes, sums[2], totals[2];
  int64_t total;
};

/// Hands out places one after the other.
struct Places {
  int64_t next = 0;

  int64_t take(int64_t floats) {
    const int64_t place = next;
    next += round_up(floats, 16);
    return place;
  }
};

/// What both passes need; `kinds` of rows are packed as values as well, `length` is the most rows that a lane meets.
inline AttentionBackwardMemory rows_memory(Places& places, int64_t head_dim, int64_t pack, int kinds, int64_t length) {
  AttentionBackwardMemory m = {};
  m.key_row = round_up((head_dim + pack - 1) / pack, 16);
  m.value_row = round_up(head_dim, 16);
  const int64_t bytes = 4 * (2 * m.key_row + kinds * m.value_row / pack);
  const int64_t fitting = larger(smaller(kChunkBytes / bytes, kChunkKeys) / kBlockKeys, 1) * kBlockKeys;
  m.chunk = smaller(fitting, round_up(larger(length, 1), kBlockKeys));
  for (int kind = 0; kind < 2; ++kind) {
    m.rows[kind] = places.take(m.chunk * m.key_row);
    m.lanes[kind] = places.take(kBlockRows * m.key_row);
    if (kind < kinds) m.values[kind] = places.take(m.chunk / pack * m.value_row);
  }
  m.offsets = places.take(4 * m.chunk);  // of either kind, 64 bits each
  m.shifts = places.take(m.chunk);
  m.deltas = places.take(m.chunk);
  m.lane_shifts = places.take(kBlockRows);
  m.lane_deltas = places.take(kBlockRows);
  m.weights = places.take(kBlockRows * kBlockKeys);
  return m;
}

/// Of the pass over queries: `columns` is the most keys that a row sees, `rows` the most rows of an item.
inline AttentionBackwardMemory query_pass_memory(int64_t head_dim, int64_t pack, int64_t columns, int64_t rows) {
  Places places;
  AttentionBackwardMemory m = rows_memory(places, head_dim, pack, 1, columns);
  m.blocks = columns > m.chunk ? round_up(rows, kBlockRows) / kBlockRows : 1;
  m.slopes = m.weights;
  m.sums[0] = places.take(m.blocks * kBlockRows * m.value_row);
  m.total = places.next;
  return m;
}

/// Of the pass over keys: `rows` is the most query rows of a tile that share a key head, `keys` the most of an item.
inline AttentionBackwardMemory key_pass_memory(int64_t head_dim, int64_t pack, int64_t rows, int64_t keys) {
  Places places;
  AttentionBackwardMemory m = rows_memory(places, head_dim, pack, 2, rows);
  m.blocks = 1;
  m.slopes = places.take(kBlockRows * kBlockKeys);
  for (int kind = 0; kind < 2; ++kind) {
    m.sums[kind] = places.take(kBlockRows * m.value_row);
    m.totals[kind] = places.take(keys * m.value_row);
  }
  m.total = places.next;
  return m;
}

#define TILEDATTN_DECLARE_ATTENTION_BACKWARD(isa)                                                                 \
  namespace isa {                                                                                                 \
  /* deltas [T, B, H, S] of the tokens begin .. end of T * B * S */                                               \
  void attention_deltas(const AttentionBackwardCall& call, int64_t begin, int64_t end, float* deltas);            \
  void attention_backward_item(const AttentionBackwardCall& call, const float* deltas, const AttentionItem& item, \
                               const AttentionBackwardMemory& places, float* memory);                             \
  void attention_backward_item(const AttentionBackwardCall& call, const float* deltas, const KeyItem& item,       \
                               const AttentionBackwardMemory& places, float* memory);                             \
  }
TILEDATTN_FOR_EACH_ISA(TILEDATTN_DECLARE_ATTENTION_BACKWARD)
#undef TILEDATTN_DECLARE_ATTENTION_BACKWARD

}  // namespace tiledattn
