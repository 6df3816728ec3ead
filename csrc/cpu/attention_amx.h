// The step of attention_block.h with AMX: products of bfloat16 pairs, 16 x 16 sums at a time, in matrix registers.
//
// Logits, weights and sums lie as they do there (a row of memory holds one key or dim of several queries), so that a
// matrix of packed keys, queries, values or weights is what the instructions take, and a step needs no transposes.
// Keys and values lie in squares of 32 rows (keys; dims) and 16 pairs (of dims; of keys), each read in one go:
//
//   keys     [32 keys][16 pairs of dims][key][pair]
//   values   [32 keys][dim][pair of keys]
#pragma once

#include "cpu/attention_block.h"
#include "cpu/attention_pack.h"

namespace tiledattn::TILEDATTN_ISA {

/// A block's weights may sum up to this before the shift moves to the largest logit: moving it rescales all sums, and
/// larger weights are as precise. So block.tops hold shifts, which may be less than the largest logit.
constexpr float kMostTotal = 1024.0f;
/// Shifts up to this: fma(product, scale, -shift) is then a product's rounding away from the logit's difference.
constexpr float kSmallShift = 8192.0f;

/// Vectors across a block of queries.
constexpr int kMatrixVectors = 2;

struct MatrixProducts : PairProducts {
  static constexpr bool matrices = true;
  static constexpr int64_t rows = kMatrixVectors * kWidth, keys = 2 * kBlockKeys;
  static constexpr int64_t lanes = rows, group = kSquareRows;
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
/// The same of what is not needed again soon: what is stays in the first-level cache.
template <int number>
inline void stream_matrix(const float* p, int64_t row_floats) {
  asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(number), "r"(p), "r"(row_floats * 4) : "memory");
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
  const float* squares;
  int64_t next_rows, next_pairs;  // floats from a square to that of the next rows, or pairs
  const float* lanes;
  float* sums;
  int64_t down, pairs;
  bool fresh;

  /// How often `multiply` calls meanwhile.advance().
  int64_t pauses() const { return 2 * (down / kSquareRows) * (pairs / kMatrix); }
};

/// Registers number and number + 1 hold new sums; those that they held go where they are due.
template <int number>
inline void exchange_sums(float* due, const float* sums, bool fresh) {
  constexpr int64_t lanes = MatrixProducts::rows, below = number / 2 * kMatrix * lanes;
  if (due) store_matrix<number>(due + below, lanes), store_matrix<number + 1>(due + below + kMatrix, lanes);
  if (fresh) {
    clear_matrix<number>(), clear_matrix<number + 1>();
  } else if (sums) {
    stream_matrix<number>(sums + below, lanes), stream_matrix<number + 1>(sums + below + kMatrix, lanes);
  }
}

/// Does a product, and some of `meanwhile` after every two of matrices: an Intel family 6, model 207 does both at once
/// where they alternate this often. Two by two matrices of sums are in registers 0 to 3; they are stored among the next
/// ones' products, two at a time, since four at once hold up everything else.
template <class Meanwhile>
inline void multiply(const MatrixProduct& product, Meanwhile& meanwhile) {
  constexpr int64_t lanes = MatrixProducts::rows, below = kMatrix * kMatrix;
  float* due = nullptr;
  for (int64_t row = 0; row < product.down; row += kSquareRows) {
    float* const sums = product.sums + row * lanes;
    const float *square = product.squares + row / kSquareRows * product.next_rows, *right = product.lanes;
    for (int64_t pair = 0; pair < product.pairs; pair += kMatrix, square += product.next_pairs) {
      stream_matrix<4>(square, kMatrix), load_matrix<6>(right, lanes), load_matrix<7>(right + kMatrix, lanes);
      if (pair == 0) exchange_sums<0>(due, sums, product.fresh);
      multiply_matrices<0, 4, 6>(), multiply_matrices<1, 4, 7>();
      meanwhile.advance();
      stream_matrix<5>(square + below, kMatrix);
      if (pair == 0) exchange_sums<2>(due, sums, product.fresh);
      multiply_matrices<2, 5, 6>(), multiply_matrices<3, 5, 7>();
      meanwhile.advance();
      right += kMatrix * lanes;
    }
    due = sums;
  }
  exchange_sums<0>(due, nullptr, false), exchange_sums<2>(due, nullptr, false);
}

struct Nothing {
  void advance() {}
};

/// Values at `offsets`, then zeros up to `padded` of them.
inline void pack_values_across(const void* v, const int64_t* offsets, int64_t count, int64_t padded, int64_t dim,
                               int64_t value_row, float* packed) {
  for (int64_t key = 0; key < padded; key += 2 * kMatrix) {
    for (int64_t next = key + 2 * kMatrix; next < smaller(key + 4 * kMatrix, count); ++next) {
      fetch_ahead<PairProducts>(v, offsets[next], dim);
    }
    float* place = packed + key / 2 * value_row;
    for (int64_t d = 0; d < value_row; d += kMatrix, place += kMatrix * kMatrix) {
      Vec square[kMatrix];
      for (int64_t i = 0; i < kMatrix; ++i) {
        const int64_t at = key + 2 * i;
        square[i] = d < dim ? PairProducts::load_values(v, offsets + at, count - at, d, dim - d) : Vec::zero();
      }
      transpose(square);
      for (int64_t i = 0; i < kMatrix; ++i) store(place + i * kMatrix, square[i]);
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

/// Logits, or products with their scale, that become weights 2^(scale x - shift) in place, a few at a time: those of
/// keys 2 i and 2 i + 1, as pairs, in row i.
template <int V>
class Weighing {
 public:
  /// Is done after `pauses` advances, if there are any, or once finished.
  Weighing(float* products, int64_t keys, int64_t pauses, Vec scale, const Vec (&shift)[V])
      : from_(products), to_(products), left_(keys), scale_(scale) {
    at_once_ = pauses > 0 ? round_up((keys + pauses - 1) / pauses, 2) : keys;
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) minus_shift_[j] = Vec::zero() - shift[j], total[j] = Vec::zero();
  }
  void advance() { weigh(smaller(at_once_, left_)); }
  void finish() { weigh(left_); }

  Vec total[V];  // of the weights so far

 private:
  void weigh(int64_t count) {
    constexpr int64_t lanes = V * kWidth;
    left_ -= count;
    for (; count > 0; count -= 2, from_ += 2 * lanes, to_ += lanes) {
      TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
        const float* at = from_ + j * kWidth;
        const Vec weight = exp2_nonpositive(fma(load(at), scale_, minus_shift_[j]));
        const Vec next = exp2_nonpositive(fma(load(at + lanes), scale_, minus_shift_[j]));
        total[j] = total[j] + (weight + next);
        store(to_ + j * kWidth, pair_of_weights(weight, next));
      }
    }
  }

  const float* from_;
  float* to_;
  int64_t left_, at_once_;
  Vec scale_, minus_shift_[V];
};

/// One bit per lane.
inline uint32_t lanes_above(Vec a, float limit) { return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(limit), _CMP_GT_OQ); }
inline uint32_t lanes_that_are(Vec a, float x) { return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(x), _CMP_EQ_OQ); }

/// Moves the shift of the lanes `moved` to `top`, with their totals and, if there are any, sums. An empty set's shift
/// is 0, as softmax_shift has it: -inf - (-inf) would be NaN.
template <int V>
inline void move_shifts(const QueryBlock& block, int64_t dim, bool summed, const uint32_t (&moved)[V],
                        const Vec (&top)[V]) {
  Vec factor[V];
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
    float *tops = block.tops + j * kWidth, *totals = block.totals + j * kWidth;
    const Vec before = load(tops), after = {_mm512_mask_mov_ps(before.v, static_cast<__mmask16>(moved[j]), top[j].v)};
    factor[j] = exp2_nonpositive(before - replaced(after, -INFINITY, Vec::zero()));
    store(tops, after);
    store(totals, load(totals) * factor[j]);
  }
  if (summed) rescale<V>(block, dim, factor);
}

/// The step but its two products: those of queries and keys (`own`, at block.weights) become weights. Meanwhile the
/// products `before` are added to the sums and the `next` ones made. Weights are made with the shifts so far; where
/// these turn out too small, `own` is made again. Lanes without a shift get theirs first: no weight that
/// `before` adds to their sums is above 0.
template <int V>
void weigh_block(const QueryBlock& block, const KeyBlock& seen, const MatrixProduct& own, const MatrixProduct* before,
                 const MatrixProduct* next) {
  uint32_t moved[V], any = 0;
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
    moved[j] = lanes_that_are(load(block.tops + j * kWidth), -INFINITY);
    any |= moved[j];
  }
  Nothing nothing;
  for (bool again = false;; again = true) {
    bool plain = !seen.bias && block.scale > 0.0f;
    if (!plain) scale_products<V>(block, seen);
    if (any) {
      Vec top[V];
      find_tops<V>(block.weights, seen.count, top);
      TILEDATTN_UNROLL for (auto& x : top) x = x * Vec::all(plain ? block.scale : 1.0f);
      const bool summed = !block.fresh && !(before && before->fresh);
      move_shifts<V>(block, seen.dim, summed, moved, top);
    }
    Vec shift[V];
    bool small = true;
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      shift[j] = replaced(load(block.tops + j * kWidth), -INFINITY, Vec::zero());
      small = small && all_within(shift[j], kSmallShift);
    }
    if (plain && !small) scale_products<V>(block, seen), plain = false;

    const int64_t pauses = (before ? before->pauses() : 0) + (next ? next->pauses() : 0);
    Weighing<V> weighing(block.weights, seen.count, pauses, Vec::all(plain ? block.scale : 1.0f), shift);
    if (before) multiply(*before, weighing);
    if (next) multiply(*next, weighing);
    weighing.finish();
    any = 0;
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) any |= moved[j] = lanes_above(weighing.total[j], kMostTotal);
    if (!any || again) {
      TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
        float* at = block.totals + j * kWidth;
        store(at, load(at) + weighing.total[j]);
      }
      return;
    }
    multiply(own, nothing);
    before = next = nullptr;
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
    return MatrixProduct{
        seen.keys, kSquareRows * seen.key_row, kSquare, block.queries, weights[n % 2], seen.count, seen.key_row, true};
  };
  Nothing nothing;
  MatrixProduct own = scores(0), next = own, before = own;
  multiply(own, nothing);
  for (int64_t n = 0; n < blocks; ++n, own = next) {
    const KeyBlock seen = key_block(n);
    block.weights = weights[n % 2];
    if (n + 1 < blocks) next = scores(n + 1);
    weigh_block<kMatrixVectors>(block, seen, own, n > 0 ? &before : nullptr, n + 1 < blocks ? &next : nullptr);
    before = {seen.values, kSquare,   kMatrix * value_row, block.weights,
              block.sums,  value_row, seen.count / 2,      block.fresh};
    block.fresh = false;
  }
  multiply(before, nothing);
}

}  // namespace tiledattn::TILEDATTN_ISA
