// Where elements lie in shared memory and in the registers of a warp's matrix products, for CUDA sources and the tests
// that run them on a CPU.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define TILEDATTN_PLACE static inline __host__ __device__ constexpr
#else
#define TILEDATTN_PLACE static inline constexpr
#endif

namespace tiledattn {

/// Elements of 16 bits in the 16 bytes that one instruction moves.
constexpr int kChunk = 8;

/// Bytes from the start of a matrix of `row_chunks` chunks a row (a power of two, at least 8) to a chunk. Eight rows'
/// chunks of one column lie in different banks: the low three bits of a chunk's number are flipped by those of its row.
TILEDATTN_PLACE uint32_t swizzled(uint32_t row, uint32_t chunk, uint32_t row_chunks) {
  return (row * row_chunks + (chunk ^ (row & 7u))) * 16u;
}

/// In products of 16x8 results, lane i holds rows i / 4 and i / 4 + 8, columns 2 (i % 4) and 2 (i % 4) + 1: numbers 0
/// and 1 of the first row, 2 and 3 of the second.
TILEDATTN_PLACE int fragment_row(int lane, int half) { return lane / 4 + 8 * half; }
TILEDATTN_PLACE int fragment_column(int lane) { return 2 * (lane % 4); }

/// Rows and chunks that lane i names so that four 8x8 matrices come as a 16x16 block: first the two of the upper rows
/// or, with `rows_first`, the two of the left columns.
TILEDATTN_PLACE int matrix_row(int lane, bool rows_first) {
  return lane % 8 + 8 * (rows_first ? lane / 8 % 2 : lane / 16);
}
TILEDATTN_PLACE int matrix_chunk(int lane, bool rows_first) { return rows_first ? lane / 16 : lane / 8 % 2; }

}  // namespace tiledattn
