// What csrc/cuda/hopper.cuh does on a GPU, after the PTX manual's description of each instruction: products and copies
// happen at some moment between their start and the wait for them.
#pragma once

#include <array>
#include <deque>

#include "cuda/attention_maps.h"
#include "ptx.h"

namespace tiledattn::cuda::hopper {

using ptx::SharedAddress;
using TensorMap = BoxedTensor;
using emulator::block;
using emulator::instruction;
using emulator::self;
using emulator::shared_at;

/// The eight bytes of a barrier.
struct BarrierState {
  int16_t arrivals, pending;
  int32_t phase_and_bytes;  // bytes * 2 + phase

  uint32_t phase() const { return static_cast<uint32_t>(phase_and_bytes) & 1u; }

  void settle() {
    if (pending == 0 && phase_and_bytes / 2 == 0) {
      pending = arrivals;
      phase_and_bytes ^= 1;
      block()->progress = true;
    }
  }
};
static_assert(sizeof(BarrierState) == 8);

inline BarrierState& state_of(SharedAddress barrier) {
  return *reinterpret_cast<BarrierState*>(shared_at(barrier, 8, 8));
}

inline void make_barrier(SharedAddress barrier, uint32_t arrivals) {
  state_of(barrier) = {static_cast<int16_t>(arrivals), static_cast<int16_t>(arrivals), 0};
}
inline void barriers_are_made() {}

inline void arrive(SharedAddress barrier) {
  BarrierState& state = state_of(barrier);
  if (--state.pending < 0) emulator::fail("too many threads arrive at a barrier");
  state.settle();
}

inline void arrive_expecting(SharedAddress barrier, uint32_t bytes) {
  state_of(barrier).phase_and_bytes += static_cast<int32_t>(2 * bytes);
  arrive(barrier);
}

inline void bytes_arrive(SharedAddress barrier, size_t bytes) {
  BarrierState& state = state_of(barrier);
  state.phase_and_bytes -= static_cast<int32_t>(2 * bytes);
  if (state.phase_and_bytes < 0) emulator::fail("more bytes arrive at a barrier than were announced");
  state.settle();
}

inline void wait(SharedAddress barrier, uint32_t phase) {
  while (state_of(barrier).phase() == phase) emulator::yield();
}

inline void fence_copy_engine() {}
inline void fetch_map(const TensorMap&) {}
inline void meet(int barrier, int count) { emulator::barrier(barrier, count); }
template <int kCount>
void give_registers() {}
template <int kCount>
void take_registers() {}

/// What cuTensorMapEncodeTiled's description asks for.
inline void check_map(const TensorMap& map) {
  if (reinterpret_cast<uintptr_t>(map.data) % 16 != 0) emulator::fail("a tensor map's memory must start at 16 bytes");
  for (int i = 1; i < 5; ++i) {
    if (map.size[i] == 0 || map.size[i] > uint64_t{1} << 32) emulator::fail("a tensor map's dim is empty or too long");
    if (map.stride[i] % 16 != 0 || map.stride[i] >= uint64_t{1} << 40) {
      emulator::fail("a tensor map's strides must be multiples of 16 bytes below 2^40");
    }
    if (map.size[i] == 1 && map.stride[i] < map.size[i - 1] * map.stride[i - 1]) {
      emulator::fail("the stride of a tensor map's dim of one entry must span the dim before");
    }
  }
}

inline void copy_box(SharedAddress to, const TensorMap& map, SharedAddress barrier, int32_t x0, int32_t x1, int32_t x2,
                     int32_t x3, int32_t x4) {
  if (to % kPanelRowBytes != 0) emulator::fail("a box must start at a row of a panel");
  const TensorMap tensor = map;
  const int64_t first[5] = {x0, x1, x2, x3, x4};
  emulator::later([=] {
    const int64_t rows = int64_t{tensor.box[1]} * tensor.box[2];
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < tensor.box[0]; ++column) {
        const int64_t at[5] = {first[0] + column, first[1] + row % tensor.box[1], first[2] + row / tensor.box[1],
                               first[3], first[4]};
        const char* from = static_cast<const char*>(tensor.data);
        bool inside = true;
        for (int i = 0; i < 5; ++i) {
          inside = inside && at[i] >= 0 && at[i] < static_cast<int64_t>(tensor.size[i]);
          from += at[i] * static_cast<int64_t>(tensor.stride[i]);
        }
        const auto place = static_cast<uint32_t>(to + row * kPanelRowBytes + column * 2);
        unsigned char* target = shared_at(permuted(place), 2, 2);
        if (inside) {
          std::memcpy(target, from, 2);
        } else {
          std::memset(target, 0, 2);
        }
      }
    }
    bytes_arrive(barrier, static_cast<size_t>(rows) * kPanelRowBytes);
  });
}

/// The address that a descriptor's bits say, without permutation.
struct Operand {
  uint32_t start, panel, group;

  explicit Operand(uint64_t descriptor)
      : start(static_cast<uint32_t>(descriptor & 0x3fff) << 4),
        panel(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4),
        group(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 62 != 1) emulator::fail("only operands permuted by 128 bytes are known");
  }

  /// Row `r`, column `k` of 16: rows are dense along the columns.
  uint16_t along_columns(int r, int k) const {
    return read(start + static_cast<uint32_t>(r / 8) * group + static_cast<uint32_t>(r % 8 * 128 + k * 2));
  }
  /// Row `k` of 16, column `n`: the other operand of a product by rows.
  uint16_t along_rows(int k, int n) const {
    return read(start + static_cast<uint32_t>(n / 64) * panel + static_cast<uint32_t>(k / 8) * group +
                static_cast<uint32_t>(k % 8 * 128 + n % 64 * 2));
  }

  static uint16_t read(uint32_t address) {
    uint16_t bits;
    std::memcpy(&bits, shared_at(permuted(address), 2, 2), 2);
    return bits;
  }
};

using Work = std::function<void()>;

/// Products of each warpgroup that are under way, in order, and ends of groups (empty functions).
inline std::deque<Work>& under_way(int warpgroup) {
  static thread_local std::array<std::deque<Work>, 8> queues;
  return queues[static_cast<size_t>(warpgroup)];
}

inline int warpgroup() { return self().warp() / 4; }

template <typename Start>
void warpgroup_meet(const void* which, void* argument, const Start& start) {
  emulator::meet(block()->gathered_groups[static_cast<size_t>(warpgroup())], 128, which, argument, start);
}

inline void run_first(std::deque<Work>& queue) {
  if (queue.front()) queue.front()();
  queue.pop_front();
}

inline void begin_products() {
  warpgroup_meet(instruction<20>(), nullptr, [](const std::vector<void*>&) {});
}

inline void commit_products() {
  warpgroup_meet(instruction<21>(), nullptr, [](const std::vector<void*>&) {
    std::deque<Work>& queue = under_way(warpgroup());
    queue.emplace_back();
    while (!queue.empty() && block()->chance()) run_first(queue);
  });
}

template <int kLeft>
void wait_for_products() {
  warpgroup_meet(instruction<22>(), nullptr, [](const std::vector<void*>&) {
    std::deque<Work>& queue = under_way(warpgroup());
    const auto open = [&] { return std::count_if(queue.begin(), queue.end(), [](const Work& w) { return !w; }); };
    while (open() > kLeft) run_first(queue);
  });
}

template <int n>
void pin(float (&)[n][4]) {}

/// Adds products to the fragments of 128 threads: `a(row, k)` and `b(k, column)` give the operands.
template <typename A, typename B>
void add_products(const std::vector<float*>& c, int columns, bool add, const A& a, const B& b) {
  std::vector<float> left(64 * 16), right(16 * static_cast<size_t>(columns));
  for (int r = 0; r < 64; ++r) {
    for (int k = 0; k < 16; ++k) left[static_cast<size_t>(r * 16 + k)] = a(r, k);
  }
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < columns; ++n) right[static_cast<size_t>(k * columns + n)] = b(k, n);
  }
  for (int thread = 0; thread < 128; ++thread) {
    for (int i = 0; i < columns / 2; ++i) {
      const int r = thread / 32 * 16 + fragment_row(thread % 32, i / 2 % 2);
      const int n = i / 4 * 8 + fragment_column(thread % 32) + i % 2;
      double sum = add ? c[static_cast<size_t>(thread)][i] : 0.0;
      for (int k = 0; k < 16; ++k) {
        sum += double{left[static_cast<size_t>(r * 16 + k)]} * right[static_cast<size_t>(k * columns + n)];
      }
      c[static_cast<size_t>(thread)][i] = static_cast<float>(sum);
    }
  }
}

template <typename T>
float from_bits(uint16_t bits) {
  return to_number(T{bits});
}

template <typename T>
void multiply_rows(float (&c)[16][4], uint64_t a, uint64_t b, bool add) {
  warpgroup_meet(instruction<23>(), c, [=](const std::vector<void*>& calls) {
    std::vector<float*> results;
    for (void* call : calls) results.push_back(static_cast<float*>(call));
    under_way(warpgroup()).push_back([=] {
      const Operand left(a), right(b);
      add_products(
          results, 128, add, [&](int r, int k) { return from_bits<T>(left.along_columns(r, k)); },
          [&](int k, int n) { return from_bits<T>(right.along_columns(n, k)); });
    });
  });
}

template <typename T, int n>
void multiply_add(float (&c)[n][4], const uint32_t (&a)[4], uint64_t b) {
  struct Call {
    float* c;
    const uint32_t* a;
  } call{c[0], a};
  warpgroup_meet(instruction<24>(), &call, [=](const std::vector<void*>& calls) {
    std::vector<float*> results;
    std::vector<const uint32_t*> weights;  // registers, that must stay as they are until the product is done
    for (void* one : calls) {
      results.push_back(static_cast<Call*>(one)->c);
      weights.push_back(static_cast<Call*>(one)->a);
    }
    under_way(warpgroup()).push_back([=] {
      const Operand right(b);
      const auto left = [&](int r, int k) {
        const int thread = r / 16 * 32 + r % 8 * 4 + k % 8 / 2, which = r % 16 / 8 + 2 * (k / 8);
        return from_bits<T>(static_cast<uint16_t>(weights[static_cast<size_t>(thread)][which] >> (k % 2 * 16)));
      };
      add_products(results, 8 * n, true, left, [&](int k, int at) { return from_bits<T>(right.along_rows(k, at)); });
    });
  });
}

}  // namespace tiledattn::cuda::hopper
