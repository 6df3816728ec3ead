// Cross-tile attention on NVIDIA GPUs: the interface. No torch here, and no canvas: a tile's halo is a list of tokens.
#pragma once

#include <cstdint>

namespace tiledattn::cuda {

/// float32 by products of tfloat32.
enum class AttentionElement : int32_t { float16, bfloat16, float32 };

/// A halo token: token `token` of the canvas tokens of tile `t + tile_delta`, for a tile t of the class.
struct HaloToken {
  int32_t tile_delta, token;
};

/// Halo tokens that lie in a rectangle of `HaloBoxes`' shape: from column `x` of row `row` on, of tile t + tile_delta.
struct HaloBox {
  int32_t tile_delta, row, x, unused;
};

/// The halo as boxes of one shape. A tile's canvas tokens are `rows` rows of `columns` tokens.
struct HaloBoxes {
  const HaloBox* boxes;  // by class, as AttentionArguments::starts says; null: no halo
  int32_t tokens_per_box;
  int32_t rows, columns;
  int32_t box_rows, box_columns;  // tokens_per_box = box_rows * box_columns, 8 to 128, a power of two
  const int32_t* longest_first;   // [T], all tiles
};

/// One call; every pointer is of the device. S = P + N: prefix tokens, which see P + N own tokens, then canvas tokens,
/// which see the halo as well. Strides are in elements, of dims T, B, S, H; the last dim is dense.
struct AttentionArguments {
  const void *q, *k, *v;  // [T, B, S, H, D], [T', B, S, Hkv, D]; 16-byte aligned rows
  void* out;              // [T, B, S, H, D] contiguous
  float* lse;             // [T, B, H, S] contiguous, natural logarithm; null where it isn't wanted
  const bool* mask;       // [T, B, P] contiguous, true = attend; null: all attend

  // the halo of tile t: halo[starts[c]] ... halo[starts[c + 1] - 1] with c = class_of_tile[t]; null: no halo
  const int32_t* class_of_tile;
  const int64_t* starts;
  const HaloToken* halo;

  int64_t q_stride[4], k_stride[4], v_stride[4];
  int32_t tiles, batch, sequence, heads, shared_by;  // T, B, S, H, H / Hkv
  int32_t pool_tiles;                                // T'
  int32_t head_dim;                                  // whole chunks of 16 bytes
  int32_t prefix;                                    // P
  float scale;                                       // of the logits, times log2(e); not negative
  float halo_shift;                                  // added to the halo's logits: log2 of its weight; finite
};

/// Largest head dims of the kernels.
constexpr int32_t kMaxHeadDim = 256;
constexpr int32_t kMaxHeadDimFloat32 = 128;

/// Starts the kernel of sm_80 and newer on a stream (a cudaStream_t) of the current device; null, or what went wrong.
const char* launch_attention_sm80(const AttentionArguments& arguments, AttentionElement element, void* stream);

/// The same for sm_90a, whose halo comes as boxes: `halo` of the arguments is not read, and `starts` counts boxes.
const char* launch_attention_sm90(const AttentionArguments& arguments, const HaloBoxes& halo, AttentionElement element,
                                  void* stream);

}  // namespace tiledattn::cuda
