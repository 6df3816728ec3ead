// How tensors are described to sm_90a's copy engine. No CUDA here: the tests use it as well.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "cuda/attention.h"
#include "tiledattn/hopper_layout.h"

namespace tiledattn::cuda {

/// A tensor of 16-bit elements and the boxes that are copied out of it; dim 0 is dense. A box's columns are a panel's.
struct BoxedTensor {
  const void* data;
  uint64_t size[5];
  uint64_t stride[5];  // in bytes
  uint32_t box[5];
};

inline BoxedTensor boxed(const void* data, int64_t head_dim, const int64_t (&size)[4], const int64_t (&stride)[4],
                         uint32_t box_1, uint32_t box_2) {
  BoxedTensor found = {data, {static_cast<uint64_t>(head_dim)}, {2}, {kPanelColumns, box_1, box_2, 1, 1}};
  for (int i = 0; i < 4; ++i) {
    found.size[i + 1] = static_cast<uint64_t>(size[i]);
    // torch gives a dim of one entry any stride, the driver promises to take what the dim before it spans
    const uint64_t span = (found.size[i] * found.stride[i] + 15) / 16 * 16;
    found.stride[i + 1] = size[i] == 1 ? span : static_cast<uint64_t>(2 * stride[i]);
  }
  return found;
}

/// [T, B, S, H, D] as dims (D, S, H, B, T), cut into `rows` consecutive tokens.
inline BoxedTensor boxed_tokens(const void* data, int64_t head_dim, int64_t tiles, int64_t batch, int64_t sequence,
                                int64_t heads, const int64_t (&stride)[4], uint32_t rows) {
  return boxed(data, head_dim, {sequence, heads, batch, tiles}, {stride[2], stride[3], stride[1], stride[0]}, rows, 1);
}

/// Canvas tokens of a pool [T', B, S, Hkv, D] as dims (D, column, row, Hkv, T' * B), cut into the halo's boxes.
inline BoxedTensor boxed_canvas(const void* data, const AttentionArguments& a, const HaloBoxes& halo,
                                const int64_t (&stride)[4]) {
  const auto* first = static_cast<const uint16_t*>(data) + a.prefix * stride[2];
  const int64_t entry = a.batch == 1 ? stride[0] : stride[1];
  const int64_t size[4] = {halo.columns, halo.rows, a.heads / a.shared_by, int64_t{a.pool_tiles} * a.batch};
  return boxed(first, a.head_dim, size, {stride[2], halo.columns * stride[2], stride[3], entry},
               static_cast<uint32_t>(halo.box_columns), static_cast<uint32_t>(halo.box_rows));
}

/// Why the halo can't be copied as boxes, or null.
inline const char* boxes_error(const AttentionArguments& a, const HaloBoxes& halo) {
  if (halo.boxes == nullptr) return nullptr;
  const int32_t tokens = halo.tokens_per_box;
  if (tokens != halo.box_rows * halo.box_columns) return "a box has another number of tokens than it says";
  if (tokens < 8 || tokens > 128 || (tokens & (tokens - 1)) != 0) return "boxes must hold 8, 16, 32, 64 or 128 tokens";
  if (a.prefix + halo.rows * halo.columns != a.sequence) return "rows and columns must be a tile's canvas tokens";
  for (const int64_t (*stride)[4] : {&a.k_stride, &a.v_stride}) {
    if (a.batch > 1 && (*stride)[0] != a.batch * (*stride)[1]) return "tiles and batch of k and v must be one dim";
  }
  return nullptr;
}

}  // namespace tiledattn::cuda
