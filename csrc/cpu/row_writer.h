// Writing the rows of a contiguous result one after the other. Internal to each source of csrc/cpu.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/intrinsics.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

constexpr int64_t kLine = 64;

/// Sixty-four bytes, in registers where there are any.
#if defined(TILEDATTN_ISA_AVX512) || defined(TILEDATTN_ISA_AVX512_BF16)
struct Line {
  __m512i bytes;
};
inline Line load_line(const char* from) { return {_mm512_loadu_si512(from)}; }
inline void store_line(char* to, const Line& line) { _mm512_storeu_si512(to, line.bytes); }
inline void stream_line(char* to, const Line& line) { _mm512_stream_si512(reinterpret_cast<__m512i*>(to), line.bytes); }
#elif defined(TILEDATTN_ISA_AVX2)
struct Line {
  __m256i low, high;
};
inline Line load_line(const char* from) {
  const __m256i* parts = reinterpret_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(parts), _mm256_loadu_si256(parts + 1)};
}
inline void store_line(char* to, const Line& line) {
  __m256i* parts = reinterpret_cast<__m256i*>(to);
  _mm256_storeu_si256(parts, line.low), _mm256_storeu_si256(parts + 1, line.high);
}
inline void stream_line(char* to, const Line& line) {
  __m256i* parts = reinterpret_cast<__m256i*>(to);
  _mm256_stream_si256(parts, line.low), _mm256_stream_si256(parts + 1, line.high);
}
#else
struct Line {
  char bytes[kLine];
};
inline Line load_line(const char* from) {
  Line line;
  std::memcpy(line.bytes, from, kLine);
  return line;
}
inline void store_line(char* to, const Line& line) { std::memcpy(to, line.bytes, kLine); }
#if defined(__x86_64__)
inline void stream_line(char* to, const Line& line) {
  for (int i = 0; i < kLine; i += 16) {
    const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(line.bytes + i));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), part);
  }
}
#else
inline void stream_line(char* to, const Line& line) { store_line(to, line); }
#endif
#endif
inline void copy_line(char* to, const char* from) { store_line(to, load_line(from)); }

/// Two moves that overlap, of `size` bytes each.
template <int64_t size>
inline void copy_ends(char* to, const char* from, int64_t bytes) {
  char first[size], last[size];
  std::memcpy(first, from, size);
  std::memcpy(last, from + bytes - size, size);
  std::memcpy(to, first, size);
  std::memcpy(to + bytes - size, last, size);
}

/// At most a line, an even number of bytes: a call of the library takes longer than the copy.
inline void copy_part(char* to, const char* from, int64_t bytes) {
  if (bytes >= 32) return copy_ends<32>(to, from, bytes);
  if (bytes >= 16) return copy_ends<16>(to, from, bytes);
  if (bytes >= 8) return copy_ends<8>(to, from, bytes);
  if (bytes >= 4) return copy_ends<4>(to, from, bytes);
  if (bytes) std::memcpy(to, from, 2);
}

/// A row. Four lines at a time are all read before they are written.
inline void copy_row(char* to, const char* from, int64_t bytes) {
  for (; bytes >= 4 * kLine; bytes -= 4 * kLine, from += 4 * kLine, to += 4 * kLine) {
    const Line lines[] = {load_line(from), load_line(from + kLine), load_line(from + 2 * kLine),
                          load_line(from + 3 * kLine)};
    for (int i = 0; i < 4; ++i) store_line(to + i * kLine, lines[i]);
  }
  for (; bytes >= kLine; bytes -= kLine, from += kLine, to += kLine) copy_line(to, from);
  copy_part(to, from, bytes);
}

inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(from + at);
}

/// Writes runs of bytes, each from an address on. With `kStream`, whole lines go past the caches, so that nothing is
/// read in order to be overwritten; what doesn't fill a line waits for what follows. `finish` writes the last of it.
template <bool kStream>
class RowWriter {
 public:
  explicit RowWriter(char* to) { start(to); }

  /// The next bytes go to `to`.
  void seek(char* to) {
    if (to == to_ + held_ - skip_) return;
    if constexpr (kStream) flush();
    start(to);
  }

  void append(const char* from, int64_t bytes) {
    if constexpr (kStream) {
      if (held_) {
        const int64_t room = bytes < kLine - held_ ? bytes : kLine - held_;
        copy_part(line_ + held_, from, room);
        held_ += room, from += room, bytes -= room;
        if (held_ < kLine) return;
        flush();
      }
      char* to = to_;  // not the member, which might lie where is written, for all that the compiler knows
      for (; bytes >= kLine; bytes -= kLine, from += kLine, to += kLine) stream_line(to, load_line(from));
      copy_part(line_, from, bytes);
      to_ = to, held_ = bytes;
    } else {
      copy_row(to_, from, bytes);
      to_ += bytes;
    }
  }

  /// Part of the next `rows` rows of `row_bytes` bytes: `bytes` bytes from `at` on in each, read `step` bytes apart,
  /// or zeros where `from` is null. `pass` makes those rows the ones that are done.
  void put_rows(int64_t rows, int64_t row_bytes, int64_t at, const char* from, int64_t bytes, int64_t step) {
    static_assert(!kStream, "rows may share lines, which are written once");
    char* to = to_ + at;
    if (from == nullptr) {
      for (int64_t row = 0; row < rows; ++row, to += row_bytes) std::memset(to, 0, bytes);
    } else if (bytes == kLine) {
      for (int64_t row = 0; row < rows; ++row, from += step, to += row_bytes) copy_line(to, from);
    } else if (bytes <= 8) {
      for (int64_t row = 0; row < rows; ++row, from += step, to += row_bytes) copy_part(to, from, bytes);
    } else {
      for (int64_t row = 0; row < rows; ++row, from += step, to += row_bytes) copy_row(to, from, bytes);
    }
  }

  void pass(int64_t bytes) { to_ += bytes; }

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
  void start(char* to) {
    to_ = to;
    if constexpr (kStream) skip_ = held_ = reinterpret_cast<intptr_t>(to) & (kLine - 1);
  }

  /// Writes what is held; the first line may begin with bytes that are another's (`skip_` of them).
  void flush() {
    if (skip_ == 0 && held_ == kLine) {
      stream_line(to_, load_line(line_));
    } else {
      copy_part(to_, line_ + skip_, held_ - skip_);
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
