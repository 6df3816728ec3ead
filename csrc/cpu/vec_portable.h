// Four floats in the compiler's own vector type, for processors without a header of their own (ARM, old x86).
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/intrinsics.h"

namespace tiledattn::TILEDATTN_ISA {

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

struct Vec {
  static constexpr int width = 4;
  Floats v;

  static Vec all(float x) { return {Floats{x, x, x, x}}; }
  static Vec zero() { return {Floats{}}; }
};

inline Vec load(const float* p) {
  Vec a;
  std::memcpy(&a.v, p, sizeof(a.v));
  return a;
}
inline void store(float* p, Vec a) { std::memcpy(p, &a.v, sizeof(a.v)); }
/// Past the caches where the processor can, to a whole vector's multiple.
#if defined(__x86_64__)
inline void stream(float* p, Vec a) { _mm_stream_ps(p, reinterpret_cast<__m128>(a.v)); }
#else
inline void stream(float* p, Vec a) { store(p, a); }
#endif

inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }

/// a where the mask is set, else b.
inline Floats choose(Ints mask, Floats a, Floats b) {
  return reinterpret_cast<Floats>((mask & reinterpret_cast<Ints>(a)) | (~mask & reinterpret_cast<Ints>(b)));
}
/// The larger one; b where either is NaN.
inline Vec max(Vec a, Vec b) { return {choose(a.v > b.v, a.v, b.v)}; }
inline bool any_different(Vec a, Vec b) {
  const Ints different = a.v != b.v;
  return (different[0] | different[1] | different[2] | different[3]) != 0;
}
/// a, but `other` where a is x.
inline Vec replaced(Vec a, float x, Vec other) { return {choose(a.v == Vec::all(x).v, other.v, a.v)}; }

/// x as a whole part and a fraction in [0, 1).
struct Parts {
  Ints whole;  // at least -127, for which `scale` gives 0
  Vec fraction;
};
inline Parts split(Vec x) {
  Floats held = max(Vec::all(-127.0f), x).v;
  Ints whole;
  Floats truncated;
  for (int i = 0; i < Vec::width; ++i) {
    // a NaN has no whole part: it lives on in the fraction
    whole[i] = held[i] == held[i] ? static_cast<int32_t>(held[i]) : 0;
    truncated[i] = static_cast<float>(whole[i]);
  }
  const Ints below = held < truncated;  // -1 where true
  const Floats ones = choose(below, Vec::all(1.0f).v, Floats{});
  return {whole + below, {held - truncated + ones}};
}
inline Vec scale(Vec p, const Parts& parts) {
  const Ints exponent = (parts.whole + 127) << 23;
  return {p.v * reinterpret_cast<Floats>(exponent)};
}

inline Vec interleave_low(Vec a, Vec b) { return {Floats{a.v[0], b.v[0], a.v[1], b.v[1]}}; }
inline Vec interleave_high(Vec a, Vec b) { return {Floats{a.v[2], b.v[2], a.v[3], b.v[3]}}; }

/// Stores lanes 4 i .. 4 i + 3 at p + i * stride.
inline void store_quarters(float* p, int64_t, Vec a) { store(p, a); }

/// As many 16-bit elements.
struct Words {
  uint16_t w[4];
};

/// The first `count` (1 .. 4, or more) elements as floats, zeros after them; reads no further.
inline Vec load_floats(const float* p, int64_t count) {
  if (count >= 4) return load(p);
  Vec a = Vec::zero();
  for (int64_t i = 0; i < count; ++i) a.v[i] = p[i];
  return a;
}
inline Words load_words(const void* p, int64_t count) {
  Words x = {};
  std::memcpy(x.w, p, 2 * static_cast<size_t>(count < 4 ? count : 4));
  return x;
}
inline void store_floats(float* p, Vec a, int64_t count) {
  for (int64_t i = 0; i < (count < 4 ? count : 4); ++i) p[i] = a.v[i];
}
inline void store_words(void* p, Words x, int64_t count) {
  std::memcpy(p, x.w, 2 * static_cast<size_t>(count < 4 ? count : 4));
}
/// Past the caches, to a multiple of their size.
inline void stream_words(void* p, Words x) {
#if defined(__x86_64__)
  long long bits;
  std::memcpy(&bits, x.w, sizeof(bits));
  _mm_stream_si64(static_cast<long long*>(p), bits);
#else
  store_words(p, x, 4);
#endif
}

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float float_of_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, rest = half & 0x7fff;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // the exponent is short of 112, which the product restores, subnormal numbers included
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}
inline uint16_t half_of_float(float x) {
  const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  if (size > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more
  if (size < 0x38800000) {  // subnormal: adding 0.5 leaves the rounded number in the last bits
    return static_cast<uint16_t>(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000));
  }
  return static_cast<uint16_t>(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}
inline uint16_t bfloat_of_float(float x) {
  const uint32_t bits = bits_of(x);
  return static_cast<uint16_t>(x == x ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fc0);
}

inline Vec from_float16(Words x) {
  return {Floats{float_of_half(x.w[0]), float_of_half(x.w[1]), float_of_half(x.w[2]), float_of_half(x.w[3])}};
}
inline Vec from_bfloat16(Words x) {
  return {Floats{float_of(uint32_t{x.w[0]} << 16), float_of(uint32_t{x.w[1]} << 16), float_of(uint32_t{x.w[2]} << 16),
                 float_of(uint32_t{x.w[3]} << 16)}};
}
inline Words to_float16(Vec a) {
  return {{half_of_float(a.v[0]), half_of_float(a.v[1]), half_of_float(a.v[2]), half_of_float(a.v[3])}};
}
inline Words to_bfloat16(Vec a) {
  return {{bfloat_of_float(a.v[0]), bfloat_of_float(a.v[1]), bfloat_of_float(a.v[2]), bfloat_of_float(a.v[3])}};
}
inline Words to_exact_bfloat16(Vec a) { return to_bfloat16(a); }

}  // namespace tiledattn::TILEDATTN_ISA
