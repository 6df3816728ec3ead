// Vectors of numbers from and to elements of any type but double. Internal to each source of csrc/cpu.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/vec.h"
#include "tiledattn/blending.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

inline Words load_all_words(const void* from) {
  Words words;
  std::memcpy(&words, from, sizeof(words));
  return words;
}

/// A vector of elements, or the first `count` of it.
inline Vec load_numbers(const float* from) { return load(from); }
inline Vec load_numbers(const Half* from) { return from_float16(load_all_words(from)); }
inline Vec load_numbers(const Brain* from) { return from_bfloat16(load_all_words(from)); }
inline Vec load_numbers(const float* from, int64_t count) { return load_floats(from, count); }
inline Vec load_numbers(const Half* from, int64_t count) { return from_float16(load_words(from, count)); }
inline Vec load_numbers(const Brain* from, int64_t count) { return from_bfloat16(load_words(from, count)); }

template <typename To>
inline Words words_of(Vec x) {
  if constexpr (std::is_same_v<To, Half>) return to_float16(x);
  return to_exact_bfloat16(x);
}

/// A vector to elements in memory, with `kStream` past the caches; or the first `count` of it.
template <bool kStream, typename To>
inline void put_numbers(To* to, Vec x) {
  if constexpr (std::is_same_v<To, float>) {
    if constexpr (kStream) return stream(to, x);
    store(to, x);
  } else if constexpr (kStream) {
    stream_words(to, words_of<To>(x));
  } else {
    const Words words = words_of<To>(x);
    std::memcpy(to, &words, sizeof(words));
  }
}
template <typename To>
inline void put_numbers(To* to, Vec x, int64_t count) {
  if constexpr (std::is_same_v<To, float>) {
    store_floats(to, x, count);
  } else {
    store_words(to, words_of<To>(x), count);
  }
}

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
