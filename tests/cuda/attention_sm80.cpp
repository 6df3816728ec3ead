// The sm_80 kernel on the CPU, for tests/cuda/test_attention_sm80.py.

#define TILEDATTN_EMULATOR "emulator/cuda.h"
#define TILEDATTN_EMULATED_PTX "emulator/ptx.h"
#include "cuda/attention_sm80.cuh"

using namespace tiledattn;
using namespace tiledattn::cuda;

template <typename S>
static void run(const AttentionArguments& a, unsigned seed) {
  const unsigned blocks = static_cast<unsigned>((a.sequence + S::kRows - 1) / S::kRows * a.tiles * a.heads * a.batch);
  emulator::launch({blocks, 1, 1}, {S::kThreads, 1, 1}, S::kSharedBytes, seed, [&] { sm80::attention_fwd<S>(a); });
}

template <typename T>
static void run_for(const AttentionArguments& a, unsigned seed) {
  if (a.head_dim <= 64) return run<sm80::ShapeFor<T, 64>>(a, seed);
  if (a.head_dim <= 128) return run<sm80::ShapeFor<T, 128>>(a, seed);
  if constexpr (sizeof(T) == 2) run<sm80::ShapeFor<T, 256>>(a, seed);
}

extern "C" int attention_sm80(const AttentionArguments* a, int element, unsigned seed, char* error, int room) {
  try {
    switch (static_cast<AttentionElement>(element)) {
      case AttentionElement::float16:
        run_for<Half>(*a, seed);
        break;
      case AttentionElement::bfloat16:
        run_for<Brain>(*a, seed);
        break;
      default:
        run_for<float>(*a, seed);
    }
  } catch (const std::exception& problem) {
    std::snprintf(error, static_cast<size_t>(room), "%s", problem.what());
    return 1;
  }
  return 0;
}

extern "C" int size_of_arguments() { return sizeof(AttentionArguments); }
