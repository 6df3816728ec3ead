// Eight floats (AVX2, FMA, F16C).
#pragma once

#include "cpu/intrinsics.h"

namespace tiledattn::TILEDATTN_ISA {

struct Vec {
  static constexpr int width = 8;
  __m256 v;

  static Vec all(float x) { return {_mm256_set1_ps(x)}; }
  static Vec zero() { return {_mm256_setzero_ps()}; }
};

inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
/// Past the caches, to a whole vector's multiple.
inline void stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }

/// The larger one; b where either is NaN.
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline bool any_different(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)) != 0; }
/// a, but `other` where a is x.
inline Vec replaced(Vec a, float x, Vec other) {
  return {_mm256_blendv_ps(a.v, other.v, _mm256_cmp_ps(a.v, _mm256_set1_ps(x), _CMP_EQ_OQ))};
}

/// x as a whole part and a fraction in [0, 1).
struct Parts {
  Vec whole;  // at least -127, for which `scale` gives 0
  Vec fraction;
};
inline Parts split(Vec x) {
  const Vec held = max(Vec::all(-127.0f), x);
  const Vec whole{_mm256_floor_ps(held.v)};
  return {whole, held - whole};
}
inline Vec scale(Vec p, const Parts& parts) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(parts.whole.v), _mm256_set1_epi32(127));
  return p * Vec{_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
}

inline Vec interleave_low(Vec a, Vec b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20)};
}
inline Vec interleave_high(Vec a, Vec b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31)};
}

/// Stores lanes 4 i .. 4 i + 3 at p + i * stride.
inline void store_quarters(float* p, int64_t stride, Vec a) {
  _mm_storeu_ps(p, _mm256_castps256_ps128(a.v));
  _mm_storeu_ps(p + stride, _mm256_extractf128_ps(a.v, 1));
}

inline __m256i first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < 8 ? count : 8)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/// As many 16-bit elements.
using Words = __m128i;

/// The first `count` (1 .. 8, or more) elements as floats, zeros after them; reads no further.
inline Vec load_floats(const float* p, int64_t count) {
  return {count >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(count))};
}
inline __m128i load_words(const void* p, int64_t count) {
  if (count >= 8) return _mm_loadu_si128(static_cast<const __m128i*>(p));
  alignas(16) uint16_t words[8] = {};
  std::memcpy(words, p, 2 * static_cast<size_t>(count));
  return _mm_load_si128(reinterpret_cast<const __m128i*>(words));
}

inline Vec from_float16(__m128i x) { return {_mm256_cvtph_ps(x)}; }
inline Vec from_bfloat16(__m128i x) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))}; }

inline void store_floats(float* p, Vec a, int64_t count) {
  count >= 8 ? _mm256_storeu_ps(p, a.v) : _mm256_maskstore_ps(p, first(count), a.v);
}
inline void store_words(void* p, __m128i x, int64_t count) {
  if (count >= 8) {
    _mm_storeu_si128(static_cast<__m128i*>(p), x);
    return;
  }
  alignas(16) uint16_t words[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(words), x);
  std::memcpy(p, words, 2 * static_cast<size_t>(count));
}
/// Past the caches, to a multiple of their size.
inline void stream_words(void* p, __m128i x) { _mm_stream_si128(static_cast<__m128i*>(p), x); }
inline __m128i to_float16(Vec a) { return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT); }
inline __m128i to_bfloat16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i even = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(even, _mm256_set1_epi32(0x7fc0), nan);
  const __m256i packed = _mm256_packus_epi32(words, words);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
inline __m128i to_exact_bfloat16(Vec a) { return to_bfloat16(a); }

}  // namespace tiledattn::TILEDATTN_ISA
