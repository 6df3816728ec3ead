// The step of attention_block.h with AMX: products of bfloat16 pairs, 16 x 16 sums at a time, in matrix registers.
//
// Logits, weights and sums lie as they do there (a row of memory holds one key or dim of several queries), so that a
// matrix of packed keys, queries, values or weights is what the instructions take, and a step needs no transposes.
#pragma once

#include "cpu/attention_block.h"
#include "cpu/attention_pack.h"

namespace tiledattn::TILEDATTN_ISA {

/// Rows and 32-bit columns of a matrix register.
constexpr int64_t kMatrix = 16;
/// A logit (in base 2) larger than the shift by no more than this leaves it: moving it rescales all sums, and weights
/// up to 2^8 lose nothing. So block.tops hold shifts, which may be less than the largest logit.
constexpr float kTolerated = 8.0f;
/// Shifts up to this: fma(product, scale, -shift) is then a product's rounding away from the logit's difference.
constexpr float kSmallShift = 8192.0f;

/// Vectors across a block of queries.
constexpr int kMatrixVectors = 2;

struct MatrixProducts : PairProducts {
  static constexpr bool matrices = true;
  static constexpr int64_t rows = kMatrixVectors * kWidth, keys = 2 * kBlockKeys;
  static constexpr int64_t lanes = rows, group = 2 * kMatrix;
};

/// All matrix registers of a thread hold 16 x 16 for as long as this lives.
class MatrixRegisters {
 public:
  MatrixRegisters() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~MatrixRegisters() { asm volatile("tilerelease" ::: "memory"); }
  MatrixRegisters(const MatrixRegisters&) = delete;
  MatrixRegisters& operator=(const MatrixRegisters&) = delete;
};

// the compiler knows neither these registers nor what reads memory into them, hence the clobbers
template <int number>
inline void load_matrix(const float* p, int64_t row_floats) {
  asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(number), "r"(p), "r"(row_floats * 4) : "memory");
}
template <int number>
inline void store_matrix(float* p, int64_t row_floats) {
  asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(number), "r"(p), "r"(row_floats * 4) : "memory");
}
template <int number>
inline void clear_matrix() {
  asm volatile("tilezero %%tmm%c0" ::"i"(number));
}
/// sum += a b, of pairs.
template <int sum, int a, int b>
inline void multiply_matrices() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(a), "i"(b));
}

/// A product of `down` packed rows (of `pairs` pairs) and a block of lanes (as many rows of pairs), added to `sums`
/// (`down` rows of lanes) unless that is fresh.
struct MatrixProduct {
  const float* rows;
  int64_t row_length;
  const float* lanes;
  float* sums;
  int64_t down, pairs;
  bool fresh;
};

/// Products that are due, done a step at a time, so that other work can come between.
class MatrixWork {
 public:
  void add(const MatrixProduct& product) {
    products_[count_++] = product;
    left_ += product.down / (2 * kMatrix) * (product.pairs / kMatrix);
  }
  int64_t steps_left() const { return left_; }

  void advance(int64_t steps) {
    for (; steps > 0; --steps) step();
    if (left_ == 0) count_ = at_ = 0;
  }

  void finish() { advance(left_); }

 private:
  static constexpr int64_t kLanes = MatrixProducts::rows;

  /// Two by two matrices of sums are in registers 0 to 3.
  void step() {
    const MatrixProduct& product = products_[at_];
    float *sums = product.sums + row_ * kLanes, *below = sums + kMatrix * kLanes;
    if (pair_ == 0) {
      if (product.fresh) {
        clear_matrix<0>(), clear_matrix<1>(), clear_matrix<2>(), clear_matrix<3>();
      } else {
        load_matrix<0>(sums, kLanes), load_matrix<1>(sums + kMatrix, kLanes);
        load_matrix<2>(below, kLanes), load_matrix<3>(below + kMatrix, kLanes);
      }
    }
    const int64_t row_length = product.row_length;
    const float *rows = product.rows + row_ * row_length + pair_, *lanes = product.lanes + pair_ * kLanes;
    load_matrix<4>(rows, row_length), load_matrix<6>(lanes, kLanes), load_matrix<7>(lanes + kMatrix, kLanes);
    multiply_matrices<0, 4, 6>(), multiply_matrices<1, 4, 7>();
    load_matrix<5>(rows + kMatrix * row_length, row_length);
    multiply_matrices<2, 5, 6>(), multiply_matrices<3, 5, 7>();
    --left_;
    if ((pair_ += kMatrix) < product.pairs) return;
    store_matrix<0>(sums, kLanes), store_matrix<1>(sums + kMatrix, kLanes);
    store_matrix<2>(below, kLanes), store_matrix<3>(below + kMatrix, kLanes);
    pair_ = 0;
    if ((row_ += 2 * kMatrix) == product.down) row_ = 0, ++at_;
  }

  MatrixProduct products_[2];
  int64_t count_ = 0, at_ = 0, left_ = 0;
  int64_t row_ = 0, pair_ = 0;
};

/// Values at `offsets`, then zeros up to `padded` of them: [block of keys][value_row][pairs of keys].
inline void pack_values_across(const void* v, const int64_t* offsets, int64_t count, int64_t padded, int64_t dim,
                               int64_t value_row, float* packed) {
  constexpr int64_t pairs = MatrixProducts::keys / 2;
  for (int64_t key = 0; key < padded; key += 2 * kMatrix) {
    for (int64_t next = key + 2 * kMatrix; next < smaller(key + 4 * kMatrix, count); ++next) {
      fetch_ahead<PairProducts>(v, offsets[next], dim);
    }
    float* place = packed + key / MatrixProducts::keys * (pairs * value_row) + key % MatrixProducts::keys / 2;
    for (int64_t d = 0; d < value_row; d += kMatrix) {
      Vec square[kMatrix];
      for (int64_t i = 0; i < kMatrix; ++i) {
        const int64_t at = key + 2 * i;
        square[i] = d < dim ? PairProducts::load_values(v, offsets + at, count - at, d, dim - d) : Vec::zero();
      }
      transpose(square);
      for (int64_t i = 0; i < kMatrix; ++i) store(place + (d + i) * pairs, square[i]);
    }
  }
}

/// Products become logits, in place.
template <int V>
inline void scale_products(const QueryBlock& block, const KeyBlock& seen) {
  const Vec scale = Vec::all(block.scale);
  for (int64_t key = 0; key < seen.count; ++key) {
    const Vec bias = Vec::all(seen.bias ? seen.bias[key] : 0.0f);
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      float* at = block.weights + (key * V + j) * kWidth;
      store(at, load(at) * scale + bias);
    }
  }
}

template <int V>
inline void find_tops(const float* products, int64_t count, Vec (&top)[V]) {
  TILEDATTN_UNROLL for (auto& x : top) x = Vec::all(-INFINITY);
  for (int64_t key = 0; key < count; ++key, products += V * kWidth) {
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) top[j] = max(load(products + j * kWidth), top[j]);
  }
}

/// Lanes of `top` where it is larger than that of `before` by more than is tolerated, of `before` elsewhere.
inline Vec moved_top(Vec top, Vec before) {
  const Vec most = before + Vec::all(kTolerated);
  return {_mm512_mask_mov_ps(before.v, _mm512_cmp_ps_mask(top.v, most.v, _CMP_GT_OQ), top.v)};
}
inline bool all_within(Vec a, float limit) {
  return _mm512_cmp_ps_mask(_mm512_abs_ps(a.v), _mm512_set1_ps(limit), _CMP_NLE_UQ) == 0;
}

/// Nearest bfloat16 of weights (at least 0), ties away from 0; NaN stays NaN.
inline Vec pair_of_weights(Vec weight, Vec next) {
  const __m512i half = _mm512_set1_epi32(0x8000), high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i a = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(weight.v), half), 16);
  const __m512i b = _mm512_add_epi32(_mm512_castps_si512(next.v), half);
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(high, b, a, 0xca))};  // high ? b : a
}

/// Logits, or products with their scale, become weights 2^(scale x - shift), added to `total`, in pairs of keys.
template <int V>
inline void weigh_pairs(const float* logits, float* weights, int64_t count, Vec scale, const Vec (&minus_shift)[V],
                        Vec (&total)[V]) {
  constexpr int64_t lanes = V * kWidth;
  for (int64_t key = 0; key < count; key += 2, logits += 2 * lanes, weights += lanes) {
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      const float* from = logits + j * kWidth;
      const Vec weight = exp2_nonpositive(fma(load(from), scale, minus_shift[j]));
      const Vec next = exp2_nonpositive(fma(load(from + lanes), scale, minus_shift[j]));
      total[j] = total[j] + weight;
      total[j] = total[j] + next;
      store(weights + j * kWidth, pair_of_weights(weight, next));
    }
  }
}

/// The same in place, a few keys at a time, between which `due` is finished. An Intel family 6, model 207 does vectors
/// at half its speed among matrices, but takes some 300 ns to wake a matrix unit that was idle for as long.
template <int V>
inline void weigh_between(float* weights, int64_t count, Vec scale, const Vec (&minus_shift)[V], Vec (&total)[V],
                          MatrixWork& due) {
  constexpr int64_t lanes = V * kWidth;
  TILEDATTN_UNROLL for (auto& x : total) x = Vec::zero();
  for (int64_t key = 0; key < count; key += kMatrix) {
    due.advance(due.steps_left() * kMatrix / (count - key));
    weigh_pairs<V>(weights + key * lanes, weights + key / 2 * lanes, kMatrix, scale, minus_shift, total);
  }
}

/// The step but its two products: products of queries and keys, at block.weights, become weights. `due` holds
/// earlier products, which the sums need before they are moved to a new shift.
template <int V>
void weigh_block(const QueryBlock& block, const KeyBlock& seen, MatrixWork& due) {
  Vec top[V], minus_shift[V], total[V], factor[V];
  find_tops<V>(block.weights, seen.count, top);
  Vec scale = Vec::all(block.scale);
  bool plain = !seen.bias && block.scale > 0.0f;
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) plain = plain && all_within(top[j] * scale, kSmallShift);
  if (!plain) {
    scale_products<V>(block, seen);
    find_tops<V>(block.weights, seen.count, top);
    scale = Vec::all(1.0f);
  }
  bool moved = false;
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
    const Vec before = load(block.tops + j * kWidth);
    top[j] = moved_top(top[j] * scale, before);
    moved = moved || any_different(top[j], before);
    // an empty set's shift, as softmax_shift has it: -inf - (-inf) would be NaN
    const Vec shift = replaced(top[j], -INFINITY, Vec::zero());
    factor[j] = exp2_nonpositive(before - shift);
    minus_shift[j] = Vec::zero() - shift;
    store(block.tops + j * kWidth, top[j]);
  }
  if (moved && !block.fresh) {
    due.finish();
    rescale<V>(block, seen.dim, factor);
  }
  weigh_between<V>(block.weights, seen.count, scale, minus_shift, total, due);
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
    float* at = block.totals + j * kWidth;
    store(at, fma(load(at), factor[j], total[j]));
  }
}

/// All steps of a block of queries with `blocks` blocks of keys, key_block(n) each. block.weights holds two blocks'
/// weights: while one becomes weights, the values of the one before are added up, then the products of the next are
/// made in its place.
template <class KeyBlockAt>
void attend_with_matrices(QueryBlock block, int64_t blocks, const KeyBlockAt& key_block, int64_t value_row) {
  constexpr int64_t lanes = MatrixProducts::rows, keys = MatrixProducts::keys;
  float* const weights[2] = {block.weights, block.weights + lanes * keys};
  const auto scores = [&](int64_t n) {
    const KeyBlock seen = key_block(n);
    return MatrixProduct{seen.keys, seen.key_row, block.queries, weights[n % 2], seen.count, seen.key_row, true};
  };
  MatrixWork due;
  due.add(scores(0));
  due.finish();
  for (int64_t n = 0; n < blocks; ++n) {
    const KeyBlock seen = key_block(n);
    block.weights = weights[n % 2];
    if (n + 1 < blocks) due.add(scores(n + 1));
    weigh_block<kMatrixVectors>(block, seen, due);
    due.add({seen.values, keys / 2, block.weights, block.sums, value_row, seen.count / 2, block.fresh});
    block.fresh = false;
  }
  due.finish();
}

}  // namespace tiledattn::TILEDATTN_ISA
