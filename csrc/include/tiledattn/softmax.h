// The state of a softmax over keys that are met a few at a time, for CPU and CUDA sources alike. Logits are in base 2:
// natural ones times log2(e). An empty set of keys has top = -inf and sum = 0.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define TILEDATTN_BOTH __host__ __device__
#else
#define TILEDATTN_BOTH
#endif

namespace tiledattn {

/// The largest logit met, or one near it, and the sum of 2^(logit - top). Static functions: each source file has its
/// own copy, compiled for its own instruction set.
struct SoftmaxState {
  float top;
  float sum;
};

TILEDATTN_BOTH static inline SoftmaxState empty_softmax() { return {-INFINITY, 0.0f}; }

/// What to subtract from logits whose largest is `top`: -inf - (-inf) would be NaN.
TILEDATTN_BOTH static inline float softmax_shift(float top) { return top == -INFINITY ? 0.0f : top; }

/// The factor that makes weights sum to 1; 0 for an empty set, so that its result is zeros. NaN stays NaN.
TILEDATTN_BOTH static inline float softmax_factor(SoftmaxState state) {
  return state.sum == 0.0f ? 0.0f : 1.0f / state.sum;
}

/// The natural-log sum of exponentials; -inf for an empty set.
TILEDATTN_BOTH static inline float softmax_lse(SoftmaxState state) {
  constexpr float ln2 = 0.693147180559945309f;
  return state.sum == 0.0f ? -INFINITY : fmaf(state.top, ln2, logf(state.sum));
}

/// The state of two disjoint sets of keys together; what was accumulated over each is to be multiplied by its factor.
TILEDATTN_BOTH static inline SoftmaxState merge_softmax(SoftmaxState a, SoftmaxState b, float& factor_a,
                                                        float& factor_b) {
  const float top = a.top > b.top ? a.top : b.top;
  const float shift = softmax_shift(top);
  factor_a = exp2f(a.top - shift);
  factor_b = exp2f(b.top - shift);
  return {top, a.sum * factor_a + b.sum * factor_b};
}

}  // namespace tiledattn
