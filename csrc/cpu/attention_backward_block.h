// The step that both passes of the gradients share: a block of lanes meets a block of packed rows.
//
// Lanes are queries and rows are keys, or the other way round: of each there are two kinds, whose products are the
// logits (q . k) and the gradients of the weights (dO . v).
#pragma once

#include "cpu/attention_block.h"

namespace tiledattn::TILEDATTN_ISA {

/// Lanes and rows that meet, `rows` of them at most kBlockKeys and a multiple of kGroup. A logit's exponent in base 2
/// is scale * product - lane_shift - row_shift; the shifts are lse or minus a bias, inf where nothing is seen.
struct GradientBlock {
  const float *lanes[2], *lane_shifts, *lane_deltas;
  const float *packed[2], *row_shifts, *row_deltas;
  float *weights, *slopes;
  float scale;
  int64_t rows, row_length, units;
};

/// Units of dO . v that are summed up on their own: slopes are differences of these products.
constexpr int64_t kSlopeUnits = 64;

/// Weights p of kGroup rows, never above 1: what rounding makes of a logit next to its lse is not amplified.
template <class Products, int V>
inline void weigh_rows(const GradientBlock& block, int64_t row) {
  Vec sum[kGroup][V];
  multiply_in_parts<Products, V, kScoreUnits>(block.lanes[0], block.packed[0] + row * block.row_length,
                                              block.row_length, block.units, sum);
  const Vec scale = Vec::all(-block.scale);
  TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
    const Vec row_shift = Vec::all(block.row_shifts[row + i]);
    TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
      const Vec shift = load(block.lane_shifts + j * kWidth) + row_shift;
      const Vec below = max(Vec::zero(), fma(sum[i][j], scale, shift));
      store(block.weights + ((row + i) * V + j) * kWidth, exp2_nonpositive(Vec::zero() - below));
    }
  }
}

/// Slopes p (dp - delta) of kGroup rows, whose weights are ready. Pairs of rows take the place of their first, and so
/// do those of the weights where they are to be multiplied as well.
template <class Products, int V, bool multiply_weights>
inline void slope_rows(const GradientBlock& block, int64_t row) {
  Vec sum[kGroup][V];
  multiply_in_parts<Products, V, kSlopeUnits>(block.lanes[1], block.packed[1] + row * block.row_length,
                                              block.row_length, block.units, sum);
  TILEDATTN_UNROLL for (int j = 0; j < V; ++j) {
    const Vec lane_delta = load(block.lane_deltas + j * kWidth);
    Vec weight[kGroup];
    TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
      weight[i] = load(block.weights + ((row + i) * V + j) * kWidth);
      sum[i][j] = weight[i] * (sum[i][j] - (lane_delta + Vec::all(block.row_deltas[row + i])));
    }
    if constexpr (Products::pack == 1) {
      TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; ++i) {
        store(block.slopes + ((row + i) * V + j) * kWidth, sum[i][j]);
      }
    } else {
      TILEDATTN_UNROLL for (int64_t i = 0; i < kGroup; i += 2) {
        const int64_t at = ((row + i) / 2 * V + j) * kWidth;
        if (multiply_weights) store(block.weights + at, Products::rounded(weight[i], weight[i + 1]));
        store(block.slopes + at, Products::rounded(sum[i][j], sum[i + 1][j]));
      }
    }
  }
}

/// Weights and slopes of the whole block.
template <class Products, int V, bool multiply_weights>
void weigh_and_slope(const GradientBlock& block) {
  for (int64_t row = 0; row < block.rows; row += kGroup) weigh_rows<Products, V>(block, row);
  for (int64_t row = 0; row < block.rows; row += kGroup) slope_rows<Products, V, multiply_weights>(block, row);
}

}  // namespace tiledattn::TILEDATTN_ISA
