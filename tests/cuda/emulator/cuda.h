// Runs a CUDA kernel's source on a CPU: a block at a time, its threads as fibers that are resumed in random order.
//
// What the hardware leaves open is left open here too: who runs first between two barriers is drawn by chance, shared
// memory starts as NaN, and asynchronous copies happen at a random moment between their start and the wait for them.
// So a missing barrier or wait shows up as a wrong result under some seed. Lanes of a warp must meet in collective
// instructions; a block in which nobody can go on is reported as a deadlock.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "context.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct int2 {
  int32_t x, y;
};
struct float2 {
  float x, y;
};

namespace emulator {

constexpr int kWarp = 32;

struct Fiber {
  Context context;
  dim3 index;
  int number = 0;  // within the block
  bool waits = false, done = false;
  const void* met = nullptr;  // the collective instruction that it waits in
  void* argument = nullptr;
  std::vector<std::function<void()>> open;  // asynchronous copies that it has started and not waited for
  int lane() const { return number % kWarp; }
  int warp() const { return number / kWarp; }
};

struct Barrier {
  int arrived = 0;
  std::vector<Fiber*> waiting;
};

struct Block {
  dim3 index, threads, grid;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::vector<Fiber*>> gathered;         // lanes that wait in each warp's collective instruction
  std::vector<std::vector<Fiber*>> gathered_groups;  // the same of groups of four warps
  Barrier barriers[16];
  std::vector<std::function<void()>> engine;  // work of copy engines, done at any time
  std::vector<unsigned char> shared_storage;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  std::mt19937 random;
  Context scheduler;
  Fiber* current = nullptr;
  std::string error;
  bool progress = false;  // somebody changed what others may wait for

  bool chance() { return random() & 1; }
};

inline Block*& block() {
  static thread_local Block* now = nullptr;
  return now;
}
inline Fiber& self() { return *block()->current; }

[[noreturn]] inline void fail(const std::string& message) { throw std::runtime_error(message); }

/// Gives way to another thread.
inline void yield() {
  Fiber& fiber = self();
  leave(fiber.context, block()->scheduler);
  if (!block()->error.empty()) fail("another thread failed");
}

inline void wait() {
  self().waits = true;
  while (self().waits) yield();
}

/// Lanes meet; the last one to come does `work` on all arguments, by lane, and everybody goes on.
template <typename Work>
void meet(std::vector<Fiber*>& gathered, size_t size, const void* instruction, void* argument, const Work& work) {
  Fiber& fiber = self();
  fiber.met = instruction, fiber.argument = argument;
  if (!gathered.empty() && gathered[0]->met != instruction) fail("lanes meet in different instructions");
  gathered.push_back(&fiber);
  if (gathered.size() < size) return wait();
  std::vector<void*> arguments(size);
  for (Fiber* other : gathered) arguments[static_cast<size_t>(other->number) % size] = other->argument;
  work(arguments);
  for (Fiber* other : gathered) other->waits = false;
  gathered.clear();
  block()->progress = true;
}

template <typename Work>
void warp_meet(const void* instruction, void* argument, const Work& work) {
  meet(block()->gathered[self().warp()], kWarp, instruction, argument, work);
}

inline void barrier(int id, int threads) {
  Barrier& here = block()->barriers[id];
  if (++here.arrived < threads) {
    here.waiting.push_back(&self());
    return wait();
  }
  here.arrived = 0;
  for (Fiber* other : here.waiting) other->waits = false;
  here.waiting.clear();
  block()->progress = true;
}

inline void barrier_arrive(int id, int threads) {
  Barrier& here = block()->barriers[id];
  if (++here.arrived > threads) fail("too many threads arrive at a barrier");
  if (here.arrived == threads) {
    here.arrived = 0;
    for (Fiber* other : here.waiting) other->waits = false;
    here.waiting.clear();
  }
  block()->progress = true;
}

/// `bytes` of shared memory at an address, which must lie inside and be aligned.
inline unsigned char* shared_at(uint32_t address, size_t bytes, size_t alignment) {
  if (address % alignment != 0) fail("misaligned address of shared memory");
  if (address + bytes > block()->shared_bytes) fail("address beyond shared memory");
  return block()->shared + address;
}

/// Does `work` now or when the copy engines get to it.
inline void later(std::function<void()> work) {
  if (block()->chance()) {
    work();
    block()->progress = true;
  } else {
    block()->engine.push_back(std::move(work));
  }
}

inline void run_engine_once() {
  Block& b = *block();
  if (b.engine.empty()) return;
  const size_t which = b.random() % b.engine.size();
  const auto work = std::move(b.engine[which]);
  b.engine.erase(b.engine.begin() + static_cast<long>(which));
  work();
  b.progress = true;
}

/// What a fiber runs.
inline const std::function<void()>*& body() {
  static thread_local const std::function<void()>* now = nullptr;
  return now;
}

inline void enter() {
  Block* b = block();
  try {
    (*body())();
  } catch (const std::exception& problem) {
    if (b->error.empty()) {
      const dim3 at = self().index;
      b->error = std::string(problem.what()) + " (thread " + std::to_string(at.x) + " of block " +
                 std::to_string(b->index.x) + ")";
    }
  }
  self().done = true;
  leave(self().context, b->scheduler);
}

constexpr size_t kStackBytes = 128 << 10;
constexpr int kIdleRounds = 200;

/// Memory for the stack of a block's thread: the same for every block.
inline char* stack_of(int number) {
  static thread_local std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() <= static_cast<size_t>(number)) stacks.emplace_back(new char[kStackBytes]);
  return stacks[static_cast<size_t>(number)].get();
}

inline std::unique_ptr<Fiber> make_fiber(int number, dim3 index) {
  auto fiber = std::make_unique<Fiber>();
  fiber->number = number, fiber->index = index;
  fiber->context.prepare(stack_of(number), kStackBytes, &enter);
  return fiber;
}

/// Resumes threads until all are done.
inline void run_block(Block& b) {
  int idle = 0;
  std::vector<Fiber*> ready;
  for (;;) {
    ready.clear();
    size_t done = 0;
    for (auto& fiber : b.fibers) {
      done += fiber->done;
      if (!fiber->done && !fiber->waits) ready.push_back(fiber.get());
    }
    if (done == b.fibers.size() || !b.error.empty()) return;
    b.progress = false;
    std::shuffle(ready.begin(), ready.end(), b.random);
    for (Fiber* fiber : ready) {
      if (fiber->done || fiber->waits) continue;
      b.current = fiber;
      leave(b.scheduler, fiber->context);
      if (!b.error.empty()) return;
    }
    try {
      if (b.chance() || ready.empty()) run_engine_once();
    } catch (const std::exception& problem) {
      b.error = problem.what();
      return;
    }
    idle = b.progress ? 0 : idle + 1;
    if (idle > kIdleRounds) {
      b.error = "deadlock: no thread can go on";
      return;
    }
  }
}

/// Runs `kernel` for every block of the grid; raises what a thread raised.
inline void launch(dim3 grid, dim3 threads, size_t shared_bytes, unsigned seed, const std::function<void()>& kernel) {
  const unsigned count = threads.x * threads.y * threads.z;
  if (count % kWarp) fail("the emulator runs whole warps only");
  for (unsigned number = 0; number < grid.x * grid.y * grid.z; ++number) {
    Block b;
    b.index = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    b.threads = threads, b.grid = grid, b.shared_bytes = shared_bytes;
    b.shared_storage.assign(shared_bytes + 1024, 0xff);  // NaN in every format
    const auto address = reinterpret_cast<uintptr_t>(b.shared_storage.data());
    b.shared = b.shared_storage.data() + (1024 - address % 1024) % 1024;
    b.random.seed(seed + number);
    b.gathered.resize(count / kWarp);
    b.gathered_groups.resize((count + 4 * kWarp - 1) / (4 * kWarp));
    block() = &b;
    body() = &kernel;
    for (unsigned i = 0; i < count; ++i) {
      b.fibers.push_back(
          make_fiber(static_cast<int>(i), {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y}));
    }
    run_block(b);
    block() = nullptr;
    if (!b.error.empty()) fail(b.error);
  }
}

/// One address per instruction of a kind, to tell kinds apart.
template <int kind>
const void* instruction() {
  static const char tag = 0;
  return &tag;
}

}  // namespace emulator

#define threadIdx (emulator::self().index)
#define blockIdx (emulator::block()->index)
#define blockDim (emulator::block()->threads)
#define gridDim (emulator::block()->grid)

inline void __syncthreads() {
  const dim3 n = blockDim;
  emulator::barrier(0, static_cast<int>(n.x * n.y * n.z));
}

inline void __syncwarp(unsigned = 0xffffffffu) {
  emulator::warp_meet(emulator::instruction<0>(), nullptr, [](const std::vector<void*>&) {});
}

/// Every lane's value, by lane.
template <typename T>
std::array<T, emulator::kWarp> every_lane(T value, const void* instruction) {
  std::array<T, emulator::kWarp> values{};
  struct Call {
    T value;
    std::array<T, emulator::kWarp>* values;
  } call{value, &values};
  emulator::warp_meet(instruction, &call, [](const std::vector<void*>& calls) {
    for (void* to : calls) {
      for (int lane = 0; lane < emulator::kWarp; ++lane) {
        (*static_cast<Call*>(to)->values)[static_cast<size_t>(lane)] =
            static_cast<Call*>(calls[static_cast<size_t>(lane)])->value;
      }
    }
  });
  return values;
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return every_lane(value, emulator::instruction<1>())[static_cast<size_t>(emulator::self().lane() ^ mask)];
}

template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return every_lane(value, emulator::instruction<2>())[static_cast<size_t>(lane & 31)];
}

inline int __any_sync(unsigned, int value) {
  for (const int other : every_lane(value, emulator::instruction<3>())) {
    if (other) return 1;
  }
  return 0;
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}
