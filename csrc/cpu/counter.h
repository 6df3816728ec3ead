// Internal to each source of csrc/cpu.
#pragma once

#include <cstdint>

namespace tiledattn::TILEDATTN_ISA {
namespace {

/// The place of a row among nested loops, slowest first; `next` is cheaper than dividing anew.
template <int N>
struct Counter {
  int64_t limit[N], at[N];

  void seek(int64_t row) {
    for (int i = N - 1; i >= 0; --i) {
      at[i] = row % limit[i];
      row /= limit[i];
    }
  }

  void next() {
    for (int i = N - 1; i >= 0 && ++at[i] == limit[i]; --i) at[i] = 0;
  }
};

}  // namespace
}  // namespace tiledattn::TILEDATTN_ISA
