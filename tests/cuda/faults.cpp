// Kernels with a fault each, for tests/cuda/test_emulator.py: what the emulator must notice.

#define TILEDATTN_EMULATOR "emulator/cuda.h"
#define TILEDATTN_EMULATED_PTX "emulator/ptx.h"
#define TILEDATTN_EMULATED_HOPPER "emulator/hopper.h"
#include "cuda/hopper.cuh"
#include "cuda/ptx.cuh"

using namespace tiledattn::cuda;

namespace {

constexpr unsigned kThreads = 64;

/// Each thread's place gets its neighbour's number, through shared memory.
void rotate(int* out, bool synchronised) {
  TILEDATTN_SHARED_MEMORY(memory);
  int* numbers = reinterpret_cast<int*>(memory);
  numbers[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (synchronised) __syncthreads();
  out[threadIdx.x] = numbers[(threadIdx.x + 1) % kThreads];
}

/// The same by asynchronous copies.
void copy(const int* in, int* out, bool waits) {
  TILEDATTN_SHARED_MEMORY(memory);
  const auto* place = reinterpret_cast<const int*>(memory) + 4 * threadIdx.x;
  ptx::copy_16(ptx::shared_address(place), in + 4 * threadIdx.x, true);
  if (waits) ptx::wait_for_copies();
  out[threadIdx.x] = place[1];
}

void half_a_barrier() {
  if (threadIdx.x < 32) __syncthreads();
}

void lanes_apart() {
  if (threadIdx.x % 32 < 16) {
    __syncwarp();
  } else {
    __shfl_xor_sync(0xffffffffu, 1, 1);
  }
}

void beyond() { ptx::store_shared(kThreads * 16, 1.0f); }
void misaligned() { ptx::load_shared_16(8); }

/// Dims 64 and 1, whose stride is less than the 128 bytes of a row.
void short_stride() { hopper::check_map({nullptr, {64, 1, 1, 1, 1}, {2, 16, 128, 128, 128}, {64, 1, 1, 1, 1}}); }

}  // namespace

extern "C" int run_fault(int which, const int* in, int* out, unsigned seed, char* error, int room) {
  const std::function<void()> kernels[] = {
      [=] { rotate(out, true); },
      [=] { rotate(out, false); },
      [=] { copy(in, out, true); },
      [=] { copy(in, out, false); },
      half_a_barrier,
      lanes_apart,
      beyond,
      misaligned,
      short_stride,
  };
  try {
    emulator::launch({1, 1, 1}, {kThreads, 1, 1}, kThreads * 16, seed, kernels[which]);
  } catch (const std::exception& problem) {
    std::snprintf(error, static_cast<size_t>(room), "%s", problem.what());
    return 1;
  }
  return 0;
}
