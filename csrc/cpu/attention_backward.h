// Gradients of cross-tile attention on the CPU: the interface. It knows neither torch nor canvases.
//
// With p the weights of the softmax, dp = dO . v, delta = sum dO O - dlse and ds = p (dp - delta):
//   dq = scale sum ds k over the keys that a query sees (the plan's order),
//   dk = scale sum ds q, dv = sum p dO over the queries that see a key (the order of the reversed tables).
// Each result is summed by one thread in an order that the tables fix: no atomics, equal bits in every run.
//
// Sources: csrc/attention_backward.cpp (once: checks, schedule, choice of instruction set), and once per instruction
// set csrc/cpu/attention_backward_kernel.cpp (deltas and dq) and csrc/cpu/attention_backward_keys.cpp (dk and dv).
#pragma once

#include <cstdint>

#include "cpu/attention.h"

namespace tiledattn {

/// Canvas tokens of a lender that the same other tiles, the borrowers, see: ranges of the arrays of tokens and
/// borrowers.
struct Cell {
  int64_t first_token, tokens;
  int64_t first_borrower, borrowers;
};

/// Who sees the tokens of tile u of the pool: the cells cells[starts[c]] ... cells[starts[c + 1] - 1], c = class_of[u].
struct ReversedPlan {
  const int32_t* class_of;   // [T']
  const int64_t* starts;     // [classes + 1]
  const Cell* cells;         // [starts[classes]]
  const int32_t* tokens;     // canvas tokens of the lender
  const int32_t* borrowers;  // borrower - lender, ascending within a cell
  int64_t classes, all_tokens, all_borrowers;
};

/// One call.
struct AttentionBackwardCall {
  AttentionCall forward;  // without its results

  AttentionTensor out, grad_out;  // [T, B, S, H, D]
  const float* lse;               // [T, B, H, S] contiguous, natural logarithm
  const float* grad_lse;          // likewise; null: zeros
  ReversedPlan reversed;

  void* grad_q;           // [T, B, S, H, D] contiguous, of the call's type
  void *grad_k, *grad_v;  // [T', B, S, Hkv, D] contiguous
  bool wide;              // grad_k and grad_v are float32, whatever the type
};

/// Why the call's sizes and tables can't be used, or null; as attention_error.
const char* attention_backward_error(const AttentionBackwardCall& call);

/// Bytes of memory that `attention_backward` needs for itself with `threads` threads: a number per query row (what lse
/// takes), and attention_backward_scratch_limit at most.
int64_t attention_backward_scratch_bytes(const AttentionBackwardCall& call, int threads);

/// The most that it needs for any call of a head dim besides a number per query row: it grows with neither the canvas,
/// the tiles nor the halo, only with the threads. At head dim 128 in float32 about 1.2 MB a thread.
int64_t attention_backward_scratch_limit(int64_t head_dim, int threads);

/// Runs the call. `scratch` holds attention_backward_scratch_bytes(call, parallel.threads) bytes, of any alignment. The
/// result doesn't depend on the number of threads.
void attention_backward(const AttentionBackwardCall& call, void* scratch, const Parallel& parallel);

}  // namespace tiledattn
