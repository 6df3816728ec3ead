// Runs of elements that one instruction moves, and how a GPU converts them.
#pragma once

#include <type_traits>

#include "cuda/platform.cuh"
#include "tiledattn/blending.h"

namespace tiledattn::cuda {

/// Bytes that one access moves: 2, 4, 8 or 16, aligned to as many.
template <int kBytes>
struct alignas(kBytes) Bytes {
  unsigned char byte[kBytes];
};

/// `kVector` elements next to one another.
template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Run {
  T element[kVector];
};

#if defined(TILEDATTN_EMULATOR)
/// Raises unless an access is aligned and inside the memory that the test has named.
void check_access(const void* at, int bytes, bool write);
#else
template <int kBytes>
struct WordOf;
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<16> {
  using type = uint4;
};
#endif

/// Reads what no thread of this kernel writes.
template <typename Value>
__device__ __forceinline__ Value load(const char* from) {
#if defined(TILEDATTN_EMULATOR)
  check_access(from, sizeof(Value), false);
  Value value;
  memcpy(&value, from, sizeof(Value));
  return value;
#else
  using Word = typename WordOf<sizeof(Value)>::type;
  const Word word = __ldg(reinterpret_cast<const Word*>(from));
  Value value;
  memcpy(&value, &word, sizeof(Value));
  return value;
#endif
}

template <typename Value>
__device__ __forceinline__ void store(char* to, const Value& value) {
#if defined(TILEDATTN_EMULATOR)
  check_access(to, sizeof(Value), true);
  memcpy(to, &value, sizeof(Value));
#else
  using Word = typename WordOf<sizeof(Value)>::type;
  Word word;
  memcpy(&word, &value, sizeof(Value));
  *reinterpret_cast<Word*>(to) = word;
#endif
}

/// As `to_number` and `from_number`, in one instruction.
template <typename T>
__device__ __forceinline__ Accumulator<T> widen(T value) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, Half>) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
  }
#endif
  return to_number(value);
}

template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> value) {
  T result;
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  } else if constexpr (std::is_same_v<T, Brain>) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
  }
#endif
  from_number(value, &result);
  return result;
}

}  // namespace tiledattn::cuda
