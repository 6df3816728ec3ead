// What the compiler doesn't find by itself in plain loops: stores past the caches and float16.
// Internal to each source of csrc/cpu, which is compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tiledattn/blending.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tiledattn::TILEDATTN_ISA {
namespace {

#if defined(TILEDATTN_ISA_AVX512) || defined(TILEDATTN_ISA_AVX512_BF16)
constexpr int64_t kLine = 64;
inline void stream_line(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#elif defined(TILEDATTN_ISA_AVX2)
constexpr int64_t kLine = 32;
inline void stream_line(char* to, const char* from) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif defined(__x86_64__)
constexpr int64_t kLine = 16;
inline void stream_line(char* to, const char* from) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#else
constexpr int64_t kLine = 16;
inline void stream_line(char* to, const char* from) { std::memcpy(to, from, kLine); }
#endif

/// memcpy whose whole lines go past the caches: nothing is read in order to be overwritten.
inline void stream(char* to, const char* from, int64_t bytes) {
  int64_t head = -reinterpret_cast<intptr_t>(to) & (kLine - 1);
  if (head > bytes) head = bytes;
  std::memcpy(to, from, head);
  int64_t at = head;
  for (; at + kLine <= bytes; at += kLine) stream_line(to + at, from + at);
  std::memcpy(to + at, from + at, bytes - at);
}

/// Streamed stores are ordered with later ones only after this.
inline void stream_done() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

#if defined(TILEDATTN_ISA_AVX512) || defined(TILEDATTN_ISA_AVX512_BF16)
constexpr int64_t kHalves = 16;
inline void widen(const Half* from, float* to) {
  _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
inline void narrow(const float* from, Half* to) {
  const __m256i halves = _mm512_cvtps_ph(_mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}
#elif defined(TILEDATTN_ISA_AVX2)
constexpr int64_t kHalves = 8;
inline void widen(const Half* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline void narrow(const float* from, Half* to) {
  const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
}
#else
constexpr int64_t kHalves = 1;
inline void widen(const Half* from, float* to) { *to = load(*from); }
inline void narrow(const float* from, Half* to) { store(*from, to); }
#endif

template <typename T>
void to_numbers(const T* from, Accumulator<T>* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = load(from[i]);
}

inline void to_numbers(const Half* from, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kHalves <= count; i += kHalves) widen(from + i, to + i);
  for (; i < count; ++i) to[i] = load(from[i]);
}

/// The numbers rounded to elements: where they are if there is nothing to round, else in `buffer`.
template <typename T>
const T* from_numbers(const Accumulator<T>* from, T* buffer, int64_t count) {
  if constexpr (std::is_same_v<T, Accumulator<T>>) {
    return from;
  } else {
    for (int64_t i = 0; i < count; ++i) store(from[i], buffer + i);
    return buffer;
  }
}

template <>
inline const Half* from_numbers<Half>(const float* from, Half* buffer, int64_t count) {
  int64_t i = 0;
  for (; i + kHalves <= count; i += kHalves) narrow(from + i, buffer + i);
  for (; i < count; ++i) store(from[i], buffer + i);
  return buffer;
}

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
