// How elements of each type become what a kernel multiplies: floats, or pairs of bfloat16 in 32-bit lanes.
#pragma once

#include "cpu/attention_item.h"
#include "cpu/vec.h"

namespace tiledattn::TILEDATTN_ISA {

constexpr int64_t kWidth = Vec::width;
/// Rows and 32-bit columns of a matrix register; what two of them, one below the other, hold.
constexpr int64_t kMatrix = 16, kSquareRows = 2 * kMatrix, kSquare = kSquareRows * kMatrix;

/// Blocks of queries and keys in registers of Vec: the most that a block has, and what its numbers are padded to.
struct VectorBlocks {
  static constexpr bool matrices = false;
#if defined(TILEDATTN_ISA_AVX512) || defined(TILEDATTN_ISA_AVX512_BF16)
  static constexpr int64_t rows = 4 * kWidth;
#elif defined(TILEDATTN_ISA_AVX2)
  static constexpr int64_t rows = 3 * kWidth;
#else
  static constexpr int64_t rows = 2 * kWidth;
#endif
  static constexpr int64_t keys = kBlockKeys, lanes = kWidth, group = kGroup;
};

template <AttentionType type>
inline Vec load_as_floats(const void* data, int64_t at, int64_t count) {
  if constexpr (type == AttentionType::float32) return load_floats(static_cast<const float*>(data) + at, count);
  const auto words = load_words(static_cast<const uint16_t*>(data) + at, count);
  if constexpr (type == AttentionType::float16) return from_float16(words);
  return from_bfloat16(words);
}

template <AttentionType type>
inline void store_from_floats(void* data, int64_t at, Vec x, int64_t count) {
  if constexpr (type == AttentionType::float32) {
    store_floats(static_cast<float*>(data) + at, x, count);
  } else {
    const auto words = type == AttentionType::float16 ? to_float16(x) : to_bfloat16(x);
    store_words(static_cast<uint16_t*>(data) + at, words, count);
  }
}

/// Products of floats; 16-bit inputs are converted when they are packed.
template <AttentionType element>
struct FloatProducts : VectorBlocks {
  static constexpr AttentionType type = element;
  static constexpr int64_t pack = 1;

  /// Elements at .. at + count of a row (count <= width, or more).
  static Vec load_row(const void* data, int64_t at, int64_t count) { return load_as_floats<element>(data, at, count); }
  /// The same of the value at offsets[0], if there is one.
  static Vec load_values(const void* data, const int64_t* offsets, int64_t present, int64_t at, int64_t count) {
    return present > 0 ? load_row(data, offsets[0] + at, count) : Vec::zero();
  }
  static Vec multiply(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
};

#if defined(TILEDATTN_ISA_AVX512_BF16)
/// Products of bfloat16 pairs, summed in float32.
struct PairProducts : VectorBlocks {
  static constexpr AttentionType type = AttentionType::bfloat16;
  static constexpr int64_t pack = 2;

  static Vec load_row(const void* data, int64_t at, int64_t count) {
    return load_pairs(static_cast<const uint16_t*>(data) + at, count);
  }
  /// Elements of the values at offsets[0] and offsets[1], each where present, paired.
  static Vec load_values(const void* data, const int64_t* offsets, int64_t present, int64_t at, int64_t count) {
    const auto* words = static_cast<const uint16_t*>(data) + at;
    const __m256i none = _mm256_setzero_si256();
    return pair(present > 0 ? load_words(words + offsets[0], count) : none,
                present > 1 ? load_words(words + offsets[1], count) : none);
  }
  static Vec multiply(Vec a, Vec b, Vec sum) { return dot(a, b, sum); }
  static Vec rounded(Vec weight, Vec next) { return pair(weight, next); }
};
#endif

}  // namespace tiledattn::TILEDATTN_ISA
