// The arithmetic of blending, element by element: conversions to and from float32, and the step that adds a tile.
// Everything here is `static`: each translation unit has its own copy, compiled for its own instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define TILEDATTN_INLINE static inline __host__ __device__
#else
#define TILEDATTN_INLINE static inline
#endif

namespace tiledattn {

/// IEEE binary16 and bfloat16, by their bits.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

/// What sums of an element type are kept in.
template <typename T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

TILEDATTN_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

TILEDATTN_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

TILEDATTN_INLINE float to_number(float value) { return value; }
TILEDATTN_INLINE double to_number(double value) { return value; }
TILEDATTN_INLINE float to_number(Brain value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

TILEDATTN_INLINE float to_number(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // infinity, NaN
  // as a float of the same bits, 2^112 too small; the product is exact, for subnormals too
  return float_of(sign | bits_of(float_of(magnitude << 13) * 0x1p112f));
}

TILEDATTN_INLINE void from_number(float value, float* to) { *to = value; }
TILEDATTN_INLINE void from_number(double value, double* to) { *to = value; }

TILEDATTN_INLINE void from_number(float value, Brain* to) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;  // to nearest, ties to even
  to->bits = static_cast<uint16_t>(value == value ? rounded : bits >> 16 | 0x40u);
}

TILEDATTN_INLINE void from_number(float value, Half* to) {
  const uint32_t sign = bits_of(value) >> 16 & 0x8000u;
  const uint32_t magnitude = bits_of(value) & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;  // rounds to 65536 or more
  } else if (magnitude < 0x38800000u) {
    // subnormal: adding 0.5 leaves a multiple of 2^-24 in the last bits, rounded as the adder rounds
    result = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  to->bits = static_cast<uint16_t>(sign | result);
}

/// a * b + c, rounded once where the instruction set has such an instruction.
TILEDATTN_INLINE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

TILEDATTN_INLINE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__) || defined(__FMA__) || defined(__FP_FAST_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

}  // namespace tiledattn
