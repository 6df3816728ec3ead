// Writing the rows of a contiguous result one after the other. Internal to each source of csrc/cpu.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kLine = 64;

#if defined(TILEDATTN_ISA_AVX512) || defined(TILEDATTN_ISA_AVX512_BF16)
inline void stream_line(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
inline void copy_line(char* to, const char* from) { _mm512_storeu_si512(to, _mm512_loadu_si512(from)); }
inline void copy_rest(char* to, const char* from, int64_t bytes) {
  const __mmask64 mask = (__mmask64{1} << bytes) - 1;
  _mm512_mask_storeu_epi8(to, mask, _mm512_maskz_loadu_epi8(mask, from));
}
#else
#if defined(TILEDATTN_ISA_AVX2)
inline void stream_line(char* to, const char* from) {
  for (int i = 0; i < kLine; i += 32) {
    const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i), part);
  }
}
#elif defined(__x86_64__)
inline void stream_line(char* to, const char* from) {
  for (int i = 0; i < kLine; i += 16) {
    const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), part);
  }
}
#else
inline void stream_line(char* to, const char* from) { std::memcpy(to, from, kLine); }
#endif
inline void copy_line(char* to, const char* from) { std::memcpy(to, from, kLine); }
inline void copy_rest(char* to, const char* from, int64_t bytes) { std::memcpy(to, from, bytes); }
#endif

inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at);
}

/// Appends bytes at an address that grows. With `kStream`, whole lines go past the caches, so that nothing is read in
/// order to be overwritten; what doesn't fill a line waits for the next row. `finish` writes the last of it.
template <bool kStream>
class RowWriter {
 public:
  explicit RowWriter(char* to) : to_(to) {
    if (kStream) skip_ = reinterpret_cast<intptr_t>(to) & (kLine - 1), held_ = skip_;
  }

  void append(const char* from, int64_t bytes) {
    if constexpr (kStream) {
      if (held_) {
        const int64_t room = bytes < kLine - held_ ? bytes : kLine - held_;
        copy_rest(line_ + held_, from, room < kLine ? room : 0);
        held_ += room, from += room, bytes -= room;
        if (held_ < kLine) return;
        flush();
      }
      for (; bytes >= kLine; bytes -= kLine, from += kLine, to_ += kLine) stream_line(to_, from);
      copy_rest(line_, from, bytes);
      held_ = bytes;
    } else {
      for (; bytes >= kLine; bytes -= kLine, from += kLine, to_ += kLine) copy_line(to_, from);
      copy_rest(to_, from, bytes);
      to_ += bytes;
    }
  }

  void append_zeros(int64_t bytes) {
    static const char zeros[4 * kLine] = {};
    for (int64_t size = sizeof(zeros); bytes > 0; bytes -= size) append(zeros, size = bytes < size ? bytes : size);
  }

  void finish() {
    if constexpr (kStream) {
      flush();
#if defined(__x86_64__)
      _mm_sfence();  // later stores of this thread must not overtake the streamed ones
#endif
    }
  }

 private:
  /// Writes what is held; the first line may begin with bytes that are another's (`skip_` of them).
  void flush() {
    if (skip_ == 0 && held_ == kLine) {
      stream_line(to_, line_);
    } else {
      std::memcpy(to_, line_ + skip_, held_ - skip_);
    }
    to_ += held_ - skip_;
    held_ = skip_ = 0;
  }

  char* to_;
  int64_t skip_ = 0, held_ = 0;
  alignas(kLine) char line_[kLine];
};

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
