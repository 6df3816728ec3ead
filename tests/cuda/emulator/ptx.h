// What csrc/cuda/ptx.cuh does on a GPU, after the PTX manual's description of each instruction.
#pragma once

#include "cuda.h"

namespace tiledattn::cuda::ptx {

using SharedAddress = uint32_t;
using emulator::instruction;
using emulator::self;
using emulator::shared_at;
using emulator::warp_meet;

inline SharedAddress shared_address(const void* pointer) {
  const auto at = static_cast<const unsigned char*>(pointer) - emulator::block()->shared;
  if (at < 0 || static_cast<size_t>(at) > emulator::block()->shared_bytes) emulator::fail("not shared memory");
  return static_cast<SharedAddress>(at);
}

inline void start_copy(SharedAddress to, const void* from, size_t bytes, bool present) {
  unsigned char* target = shared_at(to, bytes, bytes);
  if (present && reinterpret_cast<uintptr_t>(from) % bytes) emulator::fail("misaligned address of global memory");
  const auto work = [=] {
    if (present) {
      std::memcpy(target, from, bytes);
    } else {
      std::memset(target, 0, bytes);
    }
  };
  if (emulator::block()->chance()) {
    work();
  } else {
    self().open.push_back(work);
  }
}

inline void copy_16(SharedAddress to, const void* from, bool present) { start_copy(to, from, 16, present); }
inline void copy_8(SharedAddress to, const void* from) { start_copy(to, from, 8, true); }

inline void wait_for_copies() {
  for (const auto& work : self().open) work();
  self().open.clear();
}

template <bool transposed>
void load_matrices_either(uint32_t (&to)[4], SharedAddress row) {
  struct Call {
    uint32_t* to;
    const unsigned char* row;
  } call{to, shared_at(row, 16, 16)};
  warp_meet(instruction<transposed ? 11 : 10>(), &call, [](const std::vector<void*>& calls) {
    const auto element = [&](int matrix, int r, int column) {
      uint16_t bits;
      std::memcpy(&bits, static_cast<Call*>(calls[static_cast<size_t>(matrix * 8 + r)])->row + 2 * column, 2);
      return uint32_t{bits};
    };
    for (int lane = 0; lane < 32; ++lane) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        const int outer = lane / 4, inner = 2 * (lane % 4);
        const uint32_t low = transposed ? element(matrix, inner, outer) : element(matrix, outer, inner);
        const uint32_t high = transposed ? element(matrix, inner + 1, outer) : element(matrix, outer, inner + 1);
        static_cast<Call*>(calls[static_cast<size_t>(lane)])->to[matrix] = low | high << 16;
      }
    }
  });
}

inline void load_matrices(uint32_t (&to)[4], SharedAddress row) { load_matrices_either<false>(to, row); }
inline void load_matrices_transposed(uint32_t (&to)[4], SharedAddress row) { load_matrices_either<true>(to, row); }

template <typename T>
float number(uint32_t pair, int which) {
  return to_number(T{static_cast<uint16_t>(pair >> (16 * which))});
}

template <typename T>
void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Call {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } call{c, a, {b0, b1}};
  warp_meet(instruction<12>(), &call, [](const std::vector<void*>& calls) {
    float a_full[16][16], b_full[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& from = *static_cast<Call*>(calls[static_cast<size_t>(lane)]);
      const int group = lane / 4, member = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int r = group + (i / 2 % 2) * 8, column = 2 * member + i % 2 + (i / 4) * 8;
        a_full[r][column] = number<T>(from.a[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) b_full[2 * member + i % 2 + (i / 2) * 8][group] = number<T>(from.b[i / 2], i % 2);
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto& to = *static_cast<Call*>(calls[static_cast<size_t>(lane)]);
      for (int i = 0; i < 4; ++i) {
        const int r = lane / 4 + (i / 2) * 8, column = 2 * (lane % 4) + i % 2;
        double sum = to.c[i];
        for (int k = 0; k < 16; ++k) sum += static_cast<double>(a_full[r][k]) * b_full[k][column];
        to.c[i] = static_cast<float>(sum);
      }
    }
  });
}

/// c [16, 8] += a [16, 8] b [8, 8] of tfloat32 numbers, whose low 13 bits the hardware doesn't read.
template <>
inline void multiply<float>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Call {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } call{c, a, {b0, b1}};
  warp_meet(instruction<13>(), &call, [](const std::vector<void*>& calls) {
    const auto of_bits = [](uint32_t bits) { return float_of(bits & 0xffffe000u); };
    float a_full[16][8], b_full[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const auto& from = *static_cast<Call*>(calls[static_cast<size_t>(lane)]);
      for (int i = 0; i < 4; ++i) a_full[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = of_bits(from.a[i]);
      for (int i = 0; i < 2; ++i) b_full[lane % 4 + i * 4][lane / 4] = of_bits(from.b[i]);
    }
    for (int lane = 0; lane < 32; ++lane) {
      auto& to = *static_cast<Call*>(calls[static_cast<size_t>(lane)]);
      for (int i = 0; i < 4; ++i) {
        double sum = to.c[i];
        for (int k = 0; k < 8; ++k) {
          sum += static_cast<double>(a_full[lane / 4 + (i / 2) * 8][k]) * b_full[k][2 * (lane % 4) + i % 2];
        }
        to.c[i] = static_cast<float>(sum);
      }
    }
  });
}

inline uint32_t to_tfloat32(float x) {
  const uint32_t bits = bits_of(x);
  return x == x ? (bits + 0x1000u) & 0xffffe000u : bits;  // ties away from zero
}

template <typename T>
uint32_t pack(float low, float high) {
  T a, b;
  from_number(low, &a), from_number(high, &b);
  return a.bits | uint32_t{b.bits} << 16;
}

inline float exp2_fast(float x) { return std::exp2(x); }

inline void store_shared(SharedAddress to, uint32_t value) { std::memcpy(shared_at(to, 4, 4), &value, 4); }
inline void store_shared(SharedAddress to, float value) { std::memcpy(shared_at(to, 4, 4), &value, 4); }

inline void store_shared(SharedAddress to, float2 value) { std::memcpy(shared_at(to, 8, 8), &value, 8); }

inline float load_shared_float(SharedAddress from) {
  float value;
  std::memcpy(&value, shared_at(from, 4, 4), 4);
  return value;
}

inline int2 load_shared_8(SharedAddress from) {
  int2 value;
  std::memcpy(&value, shared_at(from, 8, 8), 8);
  return value;
}

inline uint4 load_shared_16(SharedAddress from) {
  uint4 value;
  std::memcpy(&value, shared_at(from, 16, 16), 16);
  return value;
}

}  // namespace tiledattn::cuda::ptx
