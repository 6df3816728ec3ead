// What the schedule (csrc/attention.cpp) and the kernels (csrc/cpu/attention_kernel.cpp) share: how a call is cut into
// items, and where an item's memory lies.
#pragma once

#include "cpu/attention.h"

namespace tiledattn {

/// Rows of queries that one pass over a block of keys serves at most; kernels with narrower vectors take fewer.
constexpr int64_t kBlockRows = 64;
/// Keys whose weights exist at once.
constexpr int64_t kBlockKeys = 64;
/// Keys and dims that a register block spans; packed keys come in such groups.
constexpr int64_t kGroup = 4;
/// The packed keys and values of a chunk take about this many bytes: half of a second-level cache.
constexpr int64_t kChunkBytes = 512 << 10;
/// Most keys of a chunk, whatever the head dim.
constexpr int64_t kChunkKeys = 2048;
/// Rows of one item, whose sums are kept from chunk to chunk.
constexpr int64_t kPanelRows = 1024;

constexpr int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// Rows that share keys: queries of one tile, batch entry and key/value head, either prefix or canvas tokens. Row r is
/// token first_token + r % tokens of query head kv_head * (heads / kv_heads) + r / tokens.
struct AttentionItem {
  int64_t tile, batch, kv_head;
  int64_t first_token, tokens;
  int64_t first_row, rows;
  int64_t columns;  // keys: own tokens, and those of the halo if sees_halo
  bool sees_halo;
};

/// Sizes and places in floats (or 32-bit pairs) of one thread's memory.
struct AttentionMemory {
  int64_t chunk;      // keys packed at once
  int64_t key_row;    // packed elements of a key or query, each a float or a pair
  int64_t value_row;  // head dim, padded
  int64_t blocks;     // kBlockRows rows each, whose sums are kept from chunk to chunk
  int64_t keys, values, offsets, bias, queries, weights, sums, states, total;
};

/// `pack` is 2 where kernels multiply pairs of 16-bit elements, else 1; `columns` is the most keys that a row sees.
inline AttentionMemory attention_memory(int64_t head_dim, int64_t pack, int64_t columns, int64_t rows) {
  AttentionMemory m = {};
  m.key_row = round_up((head_dim + pack - 1) / pack, 16);
  m.value_row = round_up(head_dim, 16 * pack);
  const int64_t key_bytes = 4 * (m.key_row + m.value_row / pack);
  const int64_t unit = pack * kBlockKeys;  // what matrix registers take at a time
  const int64_t fitting = larger(smaller(kChunkBytes / key_bytes, kChunkKeys) / unit, 1) * unit;
  m.chunk = smaller(fitting, round_up(larger(columns, 1), unit));
  m.blocks = columns > m.chunk ? round_up(rows, kBlockRows) / kBlockRows : 1;
  m.keys = 0;
  m.values = m.keys + m.chunk * m.key_row;
  m.offsets = m.values + m.chunk / pack * m.value_row;
  m.bias = m.offsets + 4 * m.chunk;  // of a key and of a value, 64 bits each
  m.queries = m.bias + m.chunk;
  m.weights = m.queries + kBlockRows * m.key_row;
  m.sums = m.weights + pack * kBlockRows * kBlockKeys;
  m.states = m.sums + m.blocks * kBlockRows * m.value_row;
  m.total = m.states + m.blocks * kBlockRows * 2;
  return m;
}

/// 2 where the instruction set in use multiplies pairs of the type's elements.
inline int64_t attention_pack(AttentionType type, InstructionSet set) {
  return type == AttentionType::bfloat16 && (set == InstructionSet::avx512_bf16 || set == InstructionSet::amx) ? 2 : 1;
}

/// The same for gradients: where there are matrix registers, products of pairs in vectors are slower than of floats.
inline int64_t gradient_pack(AttentionType type, InstructionSet set) {
  return set == InstructionSet::amx ? 1 : attention_pack(type, set);
}

// `next`, if not null, is likely to be run next: what it reads is fetched meanwhile. No result depends on it.
#define TILEDATTN_DECLARE_ATTENTION(isa)                                                               \
  namespace isa {                                                                                      \
  void attention_item(const AttentionCall& call, const AttentionItem& item, const AttentionItem* next, \
                      const AttentionMemory& places, float* memory);                                   \
  }
TILEDATTN_FOR_EACH_ISA(TILEDATTN_DECLARE_ATTENTION)
#undef TILEDATTN_DECLARE_ATTENTION

}  // namespace tiledattn
