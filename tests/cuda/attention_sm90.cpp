// The sm_90a kernel on the CPU, for tests/cuda/test_attention_sm90.py.

#define TILEDATTN_EMULATOR "emulator/cuda.h"
#define TILEDATTN_EMULATED_PTX "emulator/ptx.h"
#define TILEDATTN_EMULATED_HOPPER "emulator/hopper.h"
#include "cuda/attention_sm90.cuh"

using namespace tiledattn;
using namespace tiledattn::cuda;

/// As many thread blocks as a GPU of three multiprocessors would run.
constexpr unsigned kBlocks = 3;

template <typename S>
static void run(const AttentionArguments& a, const HaloBoxes& halo, unsigned seed) {
  const int64_t kv_heads = a.heads / a.shared_by;
  sm90::TensorMaps maps{};
  maps.q = boxed_tokens(a.q, a.head_dim, a.tiles, a.batch, a.sequence, a.heads, a.q_stride, S::kRows);
  maps.k = boxed_tokens(a.k, a.head_dim, a.pool_tiles, a.batch, a.sequence, kv_heads, a.k_stride, S::kKeys);
  maps.v = boxed_tokens(a.v, a.head_dim, a.pool_tiles, a.batch, a.sequence, kv_heads, a.v_stride, S::kKeys);
  if (halo.boxes != nullptr) {
    maps.k_boxes = boxed_canvas(a.k, a, halo, a.k_stride);
    maps.v_boxes = boxed_canvas(a.v, a, halo, a.v_stride);
  }
  for (const BoxedTensor* map : {&maps.q, &maps.k, &maps.v}) hopper::check_map(*map);
  if (halo.boxes != nullptr) {
    for (const BoxedTensor* map : {&maps.k_boxes, &maps.v_boxes}) hopper::check_map(*map);
  }
  emulator::launch({kBlocks, 1, 1}, {S::kThreads, 1, 1}, S::kSharedBytes, seed,
                   [&] { sm90::attention_fwd<S>(a, halo, maps); });
}

template <typename T>
static void run_for(const AttentionArguments& a, const HaloBoxes& halo, unsigned seed) {
  if (a.head_dim <= 64) return run<sm90::Shape<T, 64>>(a, halo, seed);
  return run<sm90::Shape<T, 128>>(a, halo, seed);
}

extern "C" int attention_sm90(const AttentionArguments* a, const HaloBoxes* halo, int bfloat16, unsigned seed,
                              char* error, int room) {
  try {
    if (const char* problem = boxes_error(*a, *halo)) emulator::fail(problem);
    bfloat16 ? run_for<Brain>(*a, *halo, seed) : run_for<Half>(*a, *halo, seed);
  } catch (const std::exception& problem) {
    std::snprintf(error, static_cast<size_t>(room), "%s", problem.what());
    return 1;
  }
  return 0;
}

extern "C" int size_of_arguments() { return sizeof(AttentionArguments); }
extern "C" int size_of_boxes() { return sizeof(HaloBoxes); }
