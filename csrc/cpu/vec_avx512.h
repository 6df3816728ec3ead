// Sixteen floats (AVX-512 F, BW, DQ, VL), with bfloat16 dot products where TILEDATTN_ISA_AVX512_BF16 is defined.
#pragma once

#include "cpu/intrinsics.h"

namespace tiledattn::TILEDATTN_ISA {

struct Vec {
  static constexpr int width = 16;
  __m512 v;

  static Vec all(float x) { return {_mm512_set1_ps(x)}; }
  static Vec zero() { return {_mm512_setzero_ps()}; }
};

inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
/// Past the caches, to a whole vector's multiple.
inline void stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }

/// The larger one; b where either is NaN.
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline bool any_different(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ) != 0; }
/// a, but `other` where a is x.
inline Vec replaced(Vec a, float x, Vec other) {
  return {_mm512_mask_mov_ps(a.v, _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(x), _CMP_EQ_OQ), other.v)};
}

/// x as a whole part and a fraction in [0, 1).
struct Parts {
  Vec whole;  // x itself: the instruction that scales takes its floor
  Vec fraction;
};
inline Parts split(Vec x) { return {x, {_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF)}}; }
inline Vec scale(Vec p, const Parts& parts) { return {_mm512_scalef_ps(p.v, parts.whole.v)}; }

inline Vec interleave_low(Vec a, Vec b) {
  const __m512i at = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return {_mm512_permutex2var_ps(a.v, at, b.v)};
}
inline Vec interleave_high(Vec a, Vec b) {
  const __m512i at = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return {_mm512_permutex2var_ps(a.v, at, b.v)};
}

/// Stores lanes 4 i .. 4 i + 3 at p + i * stride.
inline void store_quarters(float* p, int64_t stride, Vec a) {
  _mm_storeu_ps(p, _mm512_castps512_ps128(a.v));
  _mm_storeu_ps(p + stride, _mm512_extractf32x4_ps(a.v, 1));
  _mm_storeu_ps(p + 2 * stride, _mm512_extractf32x4_ps(a.v, 2));
  _mm_storeu_ps(p + 3 * stride, _mm512_extractf32x4_ps(a.v, 3));
}

inline __mmask16 first(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

/// As many 16-bit elements.
using Words = __m256i;

/// The first `count` (1 .. 16, or more) elements as floats, zeros after them; reads no further.
inline Vec load_floats(const float* p, int64_t count) { return {_mm512_maskz_loadu_ps(first(count), p)}; }
inline __m256i load_words(const void* p, int64_t count) { return _mm256_maskz_loadu_epi16(first(count), p); }

inline Vec from_float16(__m256i x) { return {_mm512_cvtph_ps(x)}; }
inline Vec from_bfloat16(__m256i x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}; }

inline void store_floats(float* p, Vec a, int64_t count) { _mm512_mask_storeu_ps(p, first(count), a.v); }
inline void store_words(void* p, __m256i x, int64_t count) { _mm256_mask_storeu_epi16(p, first(count), x); }
/// Past the caches, to a multiple of their size.
inline void stream_words(void* p, __m256i x) { _mm256_stream_si256(static_cast<__m256i*>(p), x); }
inline __m256i to_float16(Vec a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }

/// The nearest, subnormal numbers included, which the bfloat16 instructions take for zeros.
inline __m256i to_exact_bfloat16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i even = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(even, nan, _mm512_set1_epi32(0x7fc0)));
}

#if defined(TILEDATTN_ISA_AVX512_BF16)
inline __m256i to_bfloat16(Vec a) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)); }

/// The first `count` (1 .. 32, or more) bfloat16 as pairs in 32-bit lanes, zeros after them.
inline Vec load_pairs(const void* p, int64_t count) {
  const auto mask = static_cast<__mmask32>(count >= 32 ? 0xffffffffu : (1u << count) - 1);
  return {_mm512_castsi512_ps(_mm512_maskz_loadu_epi16(mask, p))};
}
/// Lanes of pairs: the bfloat16 nearest to a in the low half, that of b in the high half.
inline Vec pair(Vec a, Vec b) {
  const __m512i low = _mm512_cvtepu16_epi32(to_bfloat16(a));
  const __m512i high = _mm512_cvtepu16_epi32(to_bfloat16(b));
  return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)))};
}
/// The same of bfloat16 in memory.
inline Vec pair(__m256i a, __m256i b) {
  const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16);
  return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(a), high))};
}
/// c + a.low * b.low + a.high * b.high.
inline Vec dot(Vec a, Vec b, Vec c) {
  return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
#else
inline __m256i to_bfloat16(Vec a) { return to_exact_bfloat16(a); }
#endif

}  // namespace tiledattn::TILEDATTN_ISA
