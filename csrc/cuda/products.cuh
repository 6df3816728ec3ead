// Products of a warp, by element type: how operands come from shared memory into registers, and results go back.
#pragma once

#include "cuda/softmax_rows.cuh"

namespace tiledattn::cuda {

/// float16 and bfloat16: 16 columns of the left operand at a time.
template <typename Element>
struct Products {
  static constexpr int kChunk = 8;  // elements in 16 bytes
  static constexpr int kStep = 16;  // columns of the left operand of one product

  /// Four matrices at rows of shared memory: queries or keys.
  __device__ __forceinline__ static void load(uint32_t (&to)[4], ptx::SharedAddress row) {
    ptx::load_matrices(to, row);
  }

  /// Values of a step's keys, dims 16 pair to 16 pair + 15: the right operands of two products.
  __device__ __forceinline__ static void load_values(uint32_t (&to)[4], ptx::SharedAddress values, int step, int pair,
                                                     int lane, uint32_t row_chunks) {
    const uint32_t row = 16 * step + matrix_row(lane, true), chunk = 2 * pair + matrix_chunk(lane, true);
    ptx::load_matrices_transposed(to, values + swizzled(row, chunk, row_chunks));
  }

  /// Weights of a step's keys as the left operand.
  template <int n>
  __device__ __forceinline__ static void pack(const float (&weights)[n][4], int step, uint32_t (&to)[4]) {
    pack_weights<Element>(weights, step, to);
  }

  __device__ __forceinline__ static void store(ptx::SharedAddress to, float x, float y) {
    ptx::store_shared(to, ptx::pack<Element>(x, y));
  }
};

/// float32 by tfloat32: 8 columns at a time. In fragments of weights, a lane's columns 2 i and 2 i + 1 stand for the
/// operand's columns i and i + 4, so that nothing has to change lanes; the values' rows are taken in that order too.
template <>
struct Products<float> {
  static constexpr int kChunk = 4;
  static constexpr int kStep = 8;

  __device__ __forceinline__ static void load(uint32_t (&to)[4], ptx::SharedAddress row) {
    ptx::load_matrices(to, row);
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < 4; ++i) to[i] = ptx::to_tfloat32(float_of(to[i]));
  }

  __device__ __forceinline__ static void load_values(uint32_t (&to)[4], ptx::SharedAddress values, int step, int pair,
                                                     int lane, uint32_t row_chunks) {
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < 4; ++i) {
      const uint32_t row = 8 * step + fragment_column(lane) + i % 2, dim = 16 * pair + 8 * (i / 2) + lane / 4;
      const float value = ptx::load_shared_float(values + swizzled(row, dim / 4, row_chunks) + dim % 4 * 4);
      to[i] = ptx::to_tfloat32(value);
    }
  }

  template <int n>
  __device__ __forceinline__ static void pack(const float (&weights)[n][4], int step, uint32_t (&to)[4]) {
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < 4; ++i) to[i] = ptx::to_tfloat32(weights[step][2 * (i % 2) + i / 2]);
  }

  __device__ __forceinline__ static void store(ptx::SharedAddress to, float x, float y) {
    ptx::store_shared(to, float2{x, y});
  }
};

}  // namespace tiledattn::cuda
