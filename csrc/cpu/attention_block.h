// Attention of a block of queries to a block of packed keys: the two products, and the softmax between them.
//
// A vector holds one number of several queries, so maxima and sums over keys need no shuffles, and a key's or value's
// element is one broadcast that serves all queries of the block.
#pragma once

#include "cpu/attention_elements.h"
#include "tiledattn/softmax.h"

namespace tiledattn::TILEDATTN_ISA {

#define TILEDATTN_UNROLL _Pragma("GCC unroll 8")

/// Packed keys and values: a multiple of their products' `group`, at most `keys` of them.
struct KeyBlock {
  const float* keys;
  const float* values;
  const float* bias;  // null where it is all zeros
  int64_t count, key_row, units, dim;
};

/// A block of queries, V vectors wide, with its softmax so far.
struct QueryBlock {
  const float* queries;
  float *weights, *sums, *tops, *totals;
  float scale;
  bool fresh;  // nothing summed yet
};

/// Products of kGroup packed rows with a block of packed lanes, V vectors wide, each `units` elements (or pairs) long.
template <class Products, int V>
inline void multiply_group(const float* lanes, const float* rows, int64_t row_length, int64_t units,
                           Vec (&sum)[kGroup][V]) {
  TILEDATTN_UNROLL for (auto& row : sum) { TILEDATTN_UNROLL for (auto& x : row) x = Vec::zero(); }
  for (int64_t u = 0; u < units; ++u, lanes += V * kWidth) {
    Vec lane[V];
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) lane[j] = load(lanes + j * kWidth);
    TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
      const Vec element = Vec::all(rows[i * row_length + u]);
      TILEDATTN_UNROLL for (int j = 0; j < V; ++j) sum[i][j] = Products::multiply(lane[j], element, sum[i][j]);
    }
  }
}

/// Units of a logit that are summed up on their own. The same for gradients, whose weights are made with an lse of such
/// sums (but for bfloat16 in matrix registers).
constexpr int64_t kScoreUnits = 128;

/// `multiply_group` in parts of kUnits: one long sum would lose what a sum of sums keeps.
template <class Products, int V, int64_t kUnits>
inline void multiply_in_parts(const float* lanes, const float* rows, int64_t row_length, int64_t units,
                              Vec (&sum)[kGroup][V]) {
  multiply_group<Products, V>(lanes, rows, row_length, smaller(units, kUnits), sum);
  for (int64_t u = kUnits; u < units; u += kUnits) {
    Vec part[kGroup][V];
    multiply_group<Products, V>(lanes + u * V * kWidth, rows + u, row_length, smaller(units - u, kUnits), part);
    TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
      TILEDATTN_UNROLL for (int j = 0; j < V; ++j) sum[i][j] = sum[i][j] + part[i][j];
    }
  }
}

/// Logits of kGroup keys.
template <class Products, int V>
inline void score_group(const QueryBlock& block, const KeyBlock& seen, int64_t key, Vec (&top)[V]) {
  Vec sum[kGroup][V];
  multiply_in_parts<Products, V, kScoreUnits>(block.queries, seen.keys + key * seen.key_row, seen.key_row, seen.units,
                                              sum);
  const Vec scale = Vec::all(block.scale);
  TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      Vec logit = sum[i][j] * scale;
      if (seen.bias) logit = logit + Vec::all(seen.bias[key + i]);
      top[j] = max(logit, top[j]);
      store(block.weights + (key + i) * (V * kWidth) + j * kWidth, logit);
    }
  }
}

/// Logits become weights 2^(logit - shift), summed up in `total`; where pairs are multiplied, row i gets those of keys
/// 2 i and 2 i + 1.
template <class Products, int V>
inline void weigh(const QueryBlock& block, int64_t count, const Vec (&shift)[V], Vec (&total)[V]) {
  constexpr int64_t lanes = V * kWidth;
  for (int64_t key = 0; key < count; key += Products::pack) {
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      float* at = block.weights + key * lanes + j * kWidth;
      const Vec weight = exp2_nonpositive(load(at) - shift[j]);
      total[j] = total[j] + weight;
      if constexpr (Products::pack == 1) {
        store(at, weight);
      } else {
        const Vec next = exp2_nonpositive(load(at + lanes) - shift[j]);
        total[j] = total[j] + next;
        store(block.weights + key / 2 * lanes + j * kWidth, Products::rounded(weight, next));
      }
    }
  }
}

/// Adds the weighted values of kGroup dims to their sums, or starts them. Each block of keys is summed on its own
/// first: a sum of thousands would lose what a sum of sums keeps.
template <class Products, int V>
inline void accumulate_group(const float* weights, const float* values, int64_t steps, bool fresh, float* sums) {
  Vec sum[kGroup][V];
  TILEDATTN_UNROLL for (auto& row : sum) { TILEDATTN_UNROLL for (auto& x : row) x = Vec::zero(); }
  for (int64_t step = 0; step < steps; ++step, values += kGroup, weights += V * kWidth) {
    Vec weight[V];
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) weight[j] = load(weights + j * kWidth);
    TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
      const Vec value = Vec::all(values[i]);
      TILEDATTN_UNROLL for (int j = 0; j < V; ++j) sum[i][j] = Products::multiply(weight[j], value, sum[i][j]);
    }
  }
  TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      float* at = sums + (i * V + j) * kWidth;
      store(at, fresh ? sum[i][j] : load(at) + sum[i][j]);
    }
  }
}

/// The same for all dims of a block of `count` packed values (a multiple of kGroup).
template <class Products, int V>
inline void accumulate(const float* weights, const float* values, int64_t count, int64_t dim, bool fresh, float* sums) {
  constexpr int64_t group_floats = kBlockKeys / Products::pack * kGroup;
  for (int64_t d = 0; d < dim; d += kGroup, values += group_floats, sums += kGroup * V * kWidth) {
    accumulate_group<Products, V>(weights, values, count / Products::pack, fresh, sums);
  }
}

/// Moves sums and totals to a new shift where a larger logit was met.
template <int V>
inline void rescale(const QueryBlock& block, int64_t dim, const Vec (&factor)[V]) {
  for (int64_t d = 0; d < dim; ++d) {
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      float* at = block.sums + (d * V + j) * kWidth;
      store(at, load(at) * factor[j]);
    }
  }
}

/// The whole step.
template <class Products, int V>
void attend(const QueryBlock& block, const KeyBlock& seen) {
  Vec top[V], shift[V], total[V], factor[V];
  bool moved = false;
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) top[j] = load(block.tops + j * kWidth);
  for (int64_t key = 0; key < seen.count; key += kGroup) score_group<Products, V>(block, seen, key, top);
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
    const Vec before = load(block.tops + j * kWidth);
    // an empty set's shift, as softmax_shift has it: -inf - (-inf) would be NaN
    shift[j] = replaced(top[j], -INFINITY, Vec::zero());
    factor[j] = exp2_nonpositive(before - shift[j]);
    total[j] = Vec::zero();
    moved = moved || any_different(before, top[j]);
    store(block.tops + j * kWidth, top[j]);
  }
  if (moved && !block.fresh) rescale<V>(block, seen.dim, factor);
  weigh<Products, V>(block, seen.count, shift, total);
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
    float* at = block.totals + j * kWidth;
    store(at, fma(load(at), factor[j], total[j]));
  }
  accumulate<Products, V>(block.weights, seen.values, seen.count, seen.dim, block.fresh, block.sums);
}

}  // namespace tiledattn::TILEDATTN_ISA
