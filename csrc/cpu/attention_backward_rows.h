// What both passes of the gradients share: the types of products, what is read per query row, and the block of lanes
// that meets rows of the chunk.
#pragma once

#include "cpu/attention_backward_block.h"
#include "cpu/attention_backward_item.h"
#include "cpu/attention_rows.h"

namespace tiledattn::TILEDATTN_ISA {

/// Calls run(products) with what multiplies the type's elements, as `gradient_pack` has it.
template <class Run>
inline void with_products(AttentionType type, const Run& run) {
  switch (type) {
    case AttentionType::float32:
      return run(FloatProducts<AttentionType::float32>{});
    case AttentionType::float16:
      return run(FloatProducts<AttentionType::float16>{});
    default:
#if defined(TILEDATTN_ISA_AVX512_BF16) && !defined(TILEDATTN_ISA_AMX)
      return run(PairProducts{});
#else
      return run(FloatProducts<AttentionType::bfloat16>{});
#endif
  }
}

/// lse in base 2 and delta of the item's rows first .. first + count; inf for a row that sees no keys.
inline void read_rows(const AttentionBackwardCall& call, const float* all_deltas, const AttentionItem& item,
                      int64_t first, int64_t count, float* shifts, float* deltas) {
  const AttentionCall& sizes = call.forward;
  const int64_t of_batch = sizes.heads * sizes.sequence;
  const int64_t stride[4] = {sizes.batch * of_batch, of_batch, 1, sizes.sequence};
  for (int64_t i = 0; i < count; ++i) {
    int64_t at;
    row_offsets(sizes, item, stride, first + i, 1, &at);
    shifts[i] = call.lse[at] == -INFINITY ? INFINITY : call.lse[at] * kLog2E;
    deltas[i] = all_deltas[at];
  }
}

/// The block of lanes, with the chunk's rows from `row` on; the chunk has `padded` of them.
template <class Products>
inline GradientBlock gradient_block(const AttentionCall& call, const AttentionBackwardMemory& at, float* memory,
                                    int64_t row, int64_t padded) {
  GradientBlock block;
  for (int kind = 0; kind < 2; ++kind) {
    block.lanes[kind] = memory + at.lanes[kind];
    block.packed[kind] = memory + at.rows[kind] + row * at.key_row;
  }
  block.lane_shifts = memory + at.lane_shifts, block.lane_deltas = memory + at.lane_deltas;
  block.row_shifts = memory + at.shifts + row, block.row_deltas = memory + at.deltas + row;
  block.weights = memory + at.weights, block.slopes = memory + at.slopes;
  block.scale = call.scale * kLog2E;
  block.rows = smaller(kBlockKeys, padded - row);
  block.row_length = at.key_row;
  block.units = (call.head_dim + Products::pack - 1) / Products::pack;
  return block;
}

}  // namespace tiledattn::TILEDATTN_ISA
