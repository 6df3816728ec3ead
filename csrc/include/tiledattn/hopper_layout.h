// How sm_90a's copies and products lay out matrices in shared memory, for CUDA sources and the tests that run them on a
// CPU. A matrix of 16-bit elements is cut into panels of 64 columns; a row of a panel is 128 bytes, and its 16-byte
// chunks are permuted by the row's number, as an address says it: bits 4 to 6 are flipped by bits 7 to 9.
#pragma once

#include <cstdint>

#include "tiledattn/fragments.h"

namespace tiledattn {

constexpr int kPanelColumns = 64;
constexpr uint32_t kPanelRowBytes = 128;
/// Eight rows: the unit after which the permutation repeats, and that panels are aligned to.
constexpr uint32_t kPanelGroupBytes = 8 * kPanelRowBytes;

/// Where an unpermuted address lies.
TILEDATTN_PLACE uint32_t permuted(uint32_t address) { return address ^ (address >> 7 & 7u) << 4; }

/// Describes an operand to a product: `start` is an address of shared memory, groups of eight rows lie 1024 bytes
/// apart, and panels `panel_bytes` (which an operand of one panel doesn't use).
TILEDATTN_PLACE uint64_t matrix_descriptor(uint32_t start, uint32_t panel_bytes) {
  constexpr uint64_t permuted_by_128_bytes = uint64_t{1} << 62;
  return permuted_by_128_bytes | static_cast<uint64_t>(kPanelGroupBytes >> 4) << 32 |
         static_cast<uint64_t>((panel_bytes & 0x3ffffu) >> 4) << 16 | (start & 0x3ffffu) >> 4;
}

}  // namespace tiledattn
