// Cross-tile attention on the CPU: the interface. It knows neither torch nor canvases.
//
// Sources: csrc/attention.cpp (once: checks, schedule, choice of instruction set) and csrc/cpu/attention_kernel.cpp
// (once per instruction set, like every source in csrc/cpu).
#pragma once

#include <cstdint>

#include "cpu/instruction_sets.h"
#include "cpu/parallel.h"

namespace tiledattn {

/// The element types of q, k, v and out; all accumulate in float32.
enum class AttentionType : int32_t { float32, float16, bfloat16 };

/// A tensor [T, B, S, H, D]: element strides of the first four dims; the last dim is contiguous.
struct AttentionTensor {
  const void* data;
  int64_t stride[4];
};

/// `length` consecutive canvas tokens of one tile: the flat tokens t * N + start, ... for a tile t of the class.
/// Flat token u * N + n is canvas token n of the pool's tile u.
struct TokenRun {
  int32_t start;
  int32_t length;
};

/// One call. S = P + N: prefix tokens, which see P + N own tokens, then canvas tokens, which see the halo as well.
struct AttentionCall {
  AttentionType type;
  int64_t tiles, pool_tiles, batch, sequence, heads, kv_heads, head_dim;  // T, T', B, S, H, Hkv, D
  int64_t prefix;                                                         // P

  AttentionTensor q;     // [T, B, S, H, D]
  AttentionTensor k, v;  // [T', B, S, Hkv, D]: tile t's own tokens are those of tile t of the pool
  void* out;             // [T, B, S, H, D]
  int64_t out_stride[4];
  float* lse;  // [T, B, H, S] contiguous, natural logarithm; null where it isn't wanted

  const bool* prefix_mask;  // [T, B, P], true = attend; null: all attend
  int64_t mask_stride[3];
  double halo_weight;  // in [0, 1], as small as they come; its logarithm is added to the logits of halo tokens
  float scale;

  // the halo of tile t: runs[run_starts[c]] ... runs[run_starts[c + 1] - 1] with c = class_of_tile[t]
  const int32_t* class_of_tile;  // [T]
  const int64_t* run_starts;     // [classes + 1]
  const TokenRun* runs;
  int64_t classes;
};

/// Why the call's sizes and tables can't be used, or null. Reads the tables; knows nothing of how much memory the
/// pointers name, which is the caller's to check.
const char* attention_error(const AttentionCall& call);

/// Bytes of memory that `attention` needs for itself with `threads` threads.
int64_t attention_scratch_bytes(const AttentionCall& call, int threads);

/// The most that it needs for any call of a head dim: it grows with neither the canvas, the tiles nor the halo, only
/// with the threads. At head dim 128 in float32 about 1.2 MB a thread, less than K and V of 1200 tokens.
int64_t attention_scratch_limit(int64_t head_dim, int threads);

/// Runs the call. `scratch` holds attention_scratch_bytes(call, parallel.threads) bytes, of any alignment. The result
/// doesn't depend on the number of threads.
void attention(const AttentionCall& call, void* scratch, const Parallel& parallel);

}  // namespace tiledattn
