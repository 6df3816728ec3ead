// The softmax of rows whose scores lie in the fragments of a warp's products (tiledattn/fragments.h): four lanes share
// a row. What is kept per lane is the sum over its own columns; `whole_sum` adds up the four.
#pragma once

#include "cuda/ptx.cuh"
#include "tiledattn/fragments.h"
#include "tiledattn/softmax.h"

namespace tiledattn::cuda {

__device__ __forceinline__ float largest_of_row(float value) {
  value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
  return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

/// Scores of a row (numbers 2 half and 2 half + 1 of each fragment) become weights; returns the factor by which what
/// was summed up so far must be multiplied. Logits are scale * score + shift, with scale >= 0.
template <int n>
__device__ __forceinline__ float weigh_row(float (&scores)[n][4], int half, float scale, float shift,
                                           SoftmaxState& row) {
  float peak = -INFINITY;
  TILEDATTN_UNROLL_ALL
  for (int i = 0; i < n; ++i) peak = fmaxf(peak, fmaxf(scores[i][2 * half], scores[i][2 * half + 1]));
  const float top = fmaxf(row.top, fmaf(largest_of_row(peak), scale, shift));
  const float base = softmax_shift(top);
  const float factor = ptx::exp2_fast(row.top - base);
  float total = 0.0f;  // of this block first: a long sum would lose what a sum of sums keeps
  TILEDATTN_UNROLL_ALL
  for (int i = 0; i < n; ++i) {
    TILEDATTN_UNROLL_ALL
    for (int j = 2 * half; j < 2 * half + 2; ++j) {
      scores[i][j] = ptx::exp2_fast(fmaf(scores[i][j], scale, shift - base));
      total += scores[i][j];
    }
  }
  row = {top, fmaf(row.sum, factor, total)};
  return factor;
}

/// Multiplies a row's sums; most blocks of keys bring no larger logit, so that there is nothing to do.
template <int n>
__device__ __forceinline__ void rescale_row(float (&sums)[n][4], int half, float factor) {
  if (!__any_sync(0xffffffffu, factor != 1.0f)) return;
  TILEDATTN_UNROLL_ALL
  for (int i = 0; i < n; ++i) sums[i][2 * half] *= factor, sums[i][2 * half + 1] *= factor;
}

__device__ __forceinline__ float whole_sum(float sum) {
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 2);
}

/// Weights of 16 keys as the left operand of a product.
template <typename T, int n>
__device__ __forceinline__ void pack_weights(const float (&weights)[n][4], int step, uint32_t (&to)[4]) {
  TILEDATTN_UNROLL_ALL
  for (int i = 0; i < 4; ++i) {
    const float (&from)[4] = weights[2 * step + i / 2];
    to[i] = ptx::pack<T>(from[2 * (i % 2)], from[2 * (i % 2) + 1]);
  }
}

}  // namespace tiledattn::cuda
