// A vector of doubles beside Vec, in the compiler's own vector type. Internal to each source of csrc/cpu.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/vec.h"

namespace tiledattn::TILEDATTN_ISA {
namespace {

typedef double DoubleLanes __attribute__((vector_size(4 * Vec::width)));

struct Doubles {
  static constexpr int width = Vec::width / 2;
  DoubleLanes v;

  static Doubles all(double x) { return {DoubleLanes{} + x}; }
  static Doubles zero() { return {DoubleLanes{}}; }
};

inline Doubles operator+(Doubles a, Doubles b) { return {a.v + b.v}; }
inline Doubles operator-(Doubles a, Doubles b) { return {a.v - b.v}; }
inline Doubles operator*(Doubles a, Doubles b) { return {a.v * b.v}; }
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return {a.v * b.v + c.v}; }

inline void store(double* to, Doubles x) { std::memcpy(to, &x.v, sizeof(x.v)); }

/// As for vectors of floats: all of it, or the first `count`, zeros after them.
inline Doubles load_numbers(const double* from) {
  Doubles x;
  std::memcpy(&x.v, from, sizeof(x.v));
  return x;
}
inline Doubles load_numbers(const double* from, int64_t count) {
  if (count >= Doubles::width) return load_numbers(from);
  Doubles x = Doubles::zero();
  for (int64_t i = 0; i < count; ++i) x.v[i] = from[i];
  return x;
}

inline void put_numbers(double* to, Doubles x, int64_t count) {
  for (int64_t i = 0; i < (count < Doubles::width ? count : Doubles::width); ++i) to[i] = x.v[i];
}
template <bool kStream>
inline void put_numbers(double* to, Doubles x) {
  store(to, x);
}

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
