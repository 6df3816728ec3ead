// One item of cross-tile attention: rows of queries that share keys. Keys and values are packed a chunk at a time, and
// all rows of the item use them before the next chunk takes their place.

#include <cmath>

#include "cpu/attention_block.h"
#include "cpu/attention_item.h"
#include "cpu/attention_pack.h"
#include "cpu/attention_rows.h"
#include "cpu/attention_upcoming.h"
#if defined(TILEDATTN_ISA_AMX)
#include "cpu/attention_amx.h"
#endif

namespace tiledattn::TILEDATTN_ISA {
namespace {

struct Work {
  const AttentionCall& call;
  const AttentionItem& item;
  const AttentionMemory& places;
  float* memory;
  int64_t count = 0, padded = 0;              // keys of the chunk
  bool biased[kChunkKeys / kBlockKeys] = {};  // per block of keys
};

template <class Products>
void pack_values_of(const Work& work, const int64_t* offsets) {
  const AttentionCall& call = work.call;
  const AttentionMemory& at = work.places;
  float* packed = work.memory + at.values;
#if defined(TILEDATTN_ISA_AMX)
  if constexpr (Products::matrices) {
    return pack_values_across(call.v.data, offsets, work.count, work.padded, call.head_dim, at.value_row, packed);
  }
#endif
  pack_values<Products>(call.v.data, offsets, work.count, work.padded, call.head_dim, at.value_row, packed);
}

/// Packs the next chunk.
template <class Products>
void pack_chunk(Work& work, Columns& columns) {
  const AttentionCall& call = work.call;
  const AttentionMemory& at = work.places;
  auto* key_offsets = reinterpret_cast<int64_t*>(work.memory + at.offsets);
  int64_t* value_offsets = key_offsets + at.chunk;
  float* bias = work.memory + at.bias;
  work.count = columns.next(at.chunk, key_offsets, value_offsets, bias);
  work.padded = round_up(work.count, Products::group);
  for (int64_t key = work.count; key < work.padded; ++key) bias[key] = -INFINITY;
  for (int64_t key = 0; key < work.padded; key += Products::keys) {
    bool& biased = work.biased[key / Products::keys] = false;
    for (int64_t i = key; i < smaller(key + Products::keys, work.padded); ++i) biased = biased || bias[i] != 0.0f;
  }
  pack_keys<Products>(call.k.data, key_offsets, work.count, work.padded, call.head_dim, at.key_row,
                      work.memory + at.keys);
  pack_values_of<Products>(work, value_offsets);
}

/// The block of the chunk's keys that begins with `key`.
template <class Products>
KeyBlock key_block_at(const Work& work, int64_t key) {
  const AttentionMemory& at = work.places;
  KeyBlock seen;
  seen.keys = work.memory + at.keys + key * at.key_row;
  seen.values = work.memory + at.values + key / Products::pack * at.value_row;
  seen.bias = work.biased[key / Products::keys] ? work.memory + at.bias + key : nullptr;
  seen.count = smaller(Products::keys, work.padded - key);
  seen.key_row = at.key_row;
  seen.units = (work.call.head_dim + Products::pack - 1) / Products::pack;
  seen.dim = work.call.head_dim;
  return seen;
}

template <class Products, int V>
void attend_chunk(const Work& work, QueryBlock block, int64_t rows, const int64_t* offsets,
                  Upcoming<Products>& upcoming) {
  const AttentionCall& call = work.call;
  const AttentionMemory& at = work.places;
  pack_queries<Products>(call.q.data, offsets, rows, V * kWidth, call.head_dim, work.memory + at.queries);
  const auto key_block = [&work](int64_t n) { return key_block_at<Products>(work, n * Products::keys); };
  const int64_t blocks = (work.padded + Products::keys - 1) / Products::keys;
#if defined(TILEDATTN_ISA_AMX)
  if constexpr (Products::matrices) {
    if constexpr (V == kMatrixVectors) attend_with_matrices(block, blocks, key_block, at.value_row);
    return;
  }
#endif
  for (int64_t n = 0; n < blocks; ++n) {
    attend<Products, V>(block, key_block(n));
    block.fresh = false;
    upcoming.fetch_keys();
  }
}

/// Writes a block's rows and, where wanted, their lse.
template <class Products>
void finish(const Work& work, const QueryBlock& block, int64_t first, int64_t rows, int64_t lanes) {
  const AttentionCall& call = work.call;
  int64_t offsets[kRows];
  float factors[kRows];
  for (int64_t i = 0; i < lanes; ++i) factors[i] = softmax_factor({block.tops[i], block.totals[i]});
  row_offsets(call, work.item, call.out_stride, first, rows, offsets);
  store_rows<Products>(block.sums, factors, offsets, rows, lanes, call.head_dim, call.out);
  if (!call.lse) return;
  const int64_t stride[4] = {call.batch * call.heads * call.sequence, call.heads * call.sequence, 1, call.sequence};
  row_offsets(call, work.item, stride, first, rows, offsets);
  for (int64_t i = 0; i < rows; ++i) call.lse[offsets[i]] = softmax_lse({block.tops[i], block.totals[i]});
}

/// The block of rows first .. first + lanes of the item, with the sums that it has so far.
QueryBlock block_at(const Work& work, int64_t first, int64_t lanes, bool fresh) {
  const AttentionMemory& at = work.places;
  const int64_t kept = work.item.columns > at.chunk ? first : 0;
  QueryBlock block;
  block.queries = work.memory + at.queries;
  block.weights = work.memory + at.weights;
  block.sums = work.memory + at.sums + kept * at.value_row;
  block.tops = work.memory + at.states + 2 * kept;
  block.totals = block.tops + lanes;
  block.scale = work.call.scale * kLog2E;
  block.fresh = fresh;
  for (int64_t i = 0; fresh && i < lanes; ++i) block.tops[i] = -INFINITY, block.totals[i] = 0.0f;
  return block;
}

template <class Products>
void run(const AttentionCall& call, const AttentionItem& item, const AttentionItem* next, const AttentionMemory& places,
         float* memory) {
  Work work{call, item, places, memory};
  Columns columns(call, item);
  for (int64_t done = 0; done < item.columns; done += work.count) {
    pack_chunk<Products>(work, columns);
    const bool last = done + work.count == item.columns;
    Upcoming<Products> upcoming(call, item, next, columns, last, work.count, places.chunk);
    for (int64_t first = 0; first < item.rows; first += Products::rows) {
      upcoming.fetch_queries(first);
      const int64_t rows = smaller(Products::rows, item.rows - first), lanes = round_up(rows, Products::lanes);
      const QueryBlock block = block_at(work, first, lanes, done == 0);
      int64_t offsets[kRows];
      row_offsets(call, item, call.q.stride, first, rows, offsets);
      with_vectors(lanes, [&](auto vectors) {
        attend_chunk<Products, decltype(vectors)::value>(work, block, rows, offsets, upcoming);
      });
      if (last) finish<Products>(work, block, first, rows, lanes);
    }
  }
}

#if defined(TILEDATTN_ISA_AMX)
void run_with_matrices(const AttentionCall& call, const AttentionItem& item, const AttentionItem* next,
                       const AttentionMemory& places, float* memory) {
  const MatrixRegisters registers;
  run<MatrixProducts>(call, item, next, places, memory);
}
#endif

}  // namespace

void attention_item(const AttentionCall& call, const AttentionItem& item, const AttentionItem* next,
                    const AttentionMemory& places, float* memory) {
  switch (call.type) {
    case AttentionType::float32:
      return run<FloatProducts<AttentionType::float32>>(call, item, next, places, memory);
    case AttentionType::float16:
      return run<FloatProducts<AttentionType::float16>>(call, item, next, places, memory);
    default:
#if defined(TILEDATTN_ISA_AMX)
      return run_with_matrices(call, item, next, places, memory);
#elif defined(TILEDATTN_ISA_AVX512_BF16)
      return run<PairProducts>(call, item, next, places, memory);
#else
      return run<FloatProducts<AttentionType::bfloat16>>(call, item, next, places, memory);
#endif
  }
}

}  // namespace tiledattn::TILEDATTN_ISA
