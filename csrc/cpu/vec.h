// A vector of floats, as wide as the instruction set that the source is compiled for; one source serves all of them.
//
// Everything lives in the instruction set's namespace: the linker must not swap one's functions for another's.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(TILEDATTN_ISA_AVX512) || defined(TILEDATTN_ISA_AVX512_BF16)
#include "cpu/vec_avx512.h"
#elif defined(TILEDATTN_ISA_AVX2)
#include "cpu/vec_avx2.h"
#else
#include "cpu/vec_portable.h"
#endif

namespace tiledattn::TILEDATTN_ISA {

/// 2^f for f in [0, 1), relative error 1.5e-7, and 1 for 0: what is scaled by 2^0 again and again must not shrink.
inline Vec exp2_fraction(Vec f) {
  Vec p = fma(Vec::all(1.867130192e-03f), f, Vec::all(9.017030063e-03f));
  p = fma(p, f, Vec::all(5.579991329e-02f));
  p = fma(p, f, Vec::all(2.401644501e-01f));
  p = fma(p, f, Vec::all(6.931513118e-01f));
  return fma(p, f, Vec::all(1.0f));
}

/// 2^x for x <= 0 (a little above 0 does no harm; with AVX-512 any x up to +inf is right), exactly 0 for -inf; values
/// below 2^-126 may be 0. NaN stays NaN.
inline Vec exp2_nonpositive(Vec x) {
  const Parts parts = split(x);
  return scale(exp2_fraction(parts.fraction), parts);
}

/// Transposes a square of vectors in place: as many rounds of interleaving halves as the width has bits.
inline void transpose(Vec (&rows)[Vec::width]) {
  constexpr int half = Vec::width / 2;
  for (int bit = 1; bit < Vec::width; bit *= 2) {
    Vec mixed[Vec::width];
    for (int i = 0; i < half; ++i) {
      mixed[2 * i] = interleave_low(rows[i], rows[i + half]);
      mixed[2 * i + 1] = interleave_high(rows[i], rows[i + half]);
    }
    for (int i = 0; i < Vec::width; ++i) rows[i] = mixed[i];
  }
}

}  // namespace tiledattn::TILEDATTN_ISA
