// The forward kernel of cross-tile attention for sm_90a: wgmma and TMA.
//
// Thread blocks stay and take one task after the other, the longest first. One warpgroup starts the copies: queries and
// the tile's own keys and values as boxes of consecutive tokens, the halo as boxes of all one shape that are cut out of
// neighbouring tiles. Two warpgroups compute, 64 queries each: the products of the next block's keys run while a
// block's weights and values are multiplied.
#pragma once

#include "cuda/attention_maps.h"
#include "cuda/hopper.cuh"
#include "cuda/softmax_rows.cuh"
#include "tiledattn/hopper_layout.h"

namespace tiledattn::cuda::sm90 {

template <typename Element, int dim>
struct Shape {
  using T = Element;
  static constexpr int kDim = dim, kPanels = dim / kPanelColumns;
  static constexpr int kConsumers = 2, kRows = 64 * kConsumers, kKeys = 128, kStages = 2;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr uint32_t kQueryPanel = kRows * kPanelRowBytes, kKeyPanel = kKeys * kPanelRowBytes;
  static constexpr uint32_t kQueryBytes = kPanels * kQueryPanel, kKeyBytes = kPanels * kKeyPanel;
  // shared memory: queries; keys of every stage; values of every stage; barriers
  static constexpr uint32_t kKeysAt = kQueryBytes;
  static constexpr uint32_t kValuesAt = kKeysAt + kStages * kKeyBytes;
  static constexpr uint32_t kBarriersAt = kValuesAt + kStages * kKeyBytes;
  static constexpr uint32_t kSharedBytes = kBarriersAt + (2 + 4 * kStages) * 8;
};

/// What the copy engine knows of the tensors: tokens of a tile in order, and boxes of the canvas tokens.
struct TensorMaps {
  hopper::TensorMap q, k, v, k_boxes, v_boxes;
};

/// Barriers, by address.
template <typename S>
struct Barriers {
  ptx::SharedAddress first;
  __device__ __forceinline__ ptx::SharedAddress at(int number) const { return first + 8 * number; }
  __device__ __forceinline__ ptx::SharedAddress queries_here() const { return at(0); }
  __device__ __forceinline__ ptx::SharedAddress queries_read() const { return at(1); }
  __device__ __forceinline__ ptx::SharedAddress keys_here(int stage) const { return at(2 + stage); }
  __device__ __forceinline__ ptx::SharedAddress keys_read(int stage) const { return at(2 + S::kStages + stage); }
  __device__ __forceinline__ ptx::SharedAddress values_here(int stage) const { return at(2 + 2 * S::kStages + stage); }
  __device__ __forceinline__ ptx::SharedAddress values_read(int stage) const { return at(2 + 3 * S::kStages + stage); }

  __device__ __forceinline__ void make() const {
    for (int number = 0; number < 2 + 4 * S::kStages; ++number) {
      const bool here = number == 0 || (number >= 2 && (number - 2) / S::kStages % 2 == 0);
      hopper::make_barrier(at(number), here ? 1 : S::kConsumers);
    }
    hopper::barriers_are_made();
  }
};

/// 128 queries of a tile, batch entry and head, and how many keys they see.
struct Task {
  int32_t tile, batch, head, first_row;
  int32_t own_blocks, blocks;
  int32_t halo_tokens;
  const HaloBox* boxes;
};

template <typename S>
__device__ __forceinline__ Task task_of(const AttentionArguments& a, const HaloBoxes& halo, uint32_t number) {
  const uint32_t row_blocks = (a.sequence + S::kRows - 1) / S::kRows;
  Task task;
  task.first_row = static_cast<int32_t>(number % row_blocks) * S::kRows, number /= row_blocks;
  task.head = static_cast<int32_t>(number % a.heads), number /= a.heads;
  task.batch = static_cast<int32_t>(number % a.batch);
  task.tile = halo.longest_first[number / a.batch];
  task.own_blocks = (a.sequence + S::kKeys - 1) / S::kKeys;
  task.halo_tokens = 0, task.boxes = nullptr;
  if (halo.boxes != nullptr && task.first_row + S::kRows > a.prefix) {
    const int32_t of_class = a.class_of_tile[task.tile];
    const int64_t first = a.starts[of_class];
    task.halo_tokens = static_cast<int32_t>(a.starts[of_class + 1] - first) * halo.tokens_per_box;
    task.boxes = halo.boxes + first;
  }
  task.blocks = task.own_blocks + (task.halo_tokens + S::kKeys - 1) / S::kKeys;
  return task;
}

template <typename S>
__device__ __forceinline__ uint32_t number_of_tasks(const AttentionArguments& a) {
  return (a.sequence + S::kRows - 1) / S::kRows * a.heads * a.batch * a.tiles;
}

/// The place and the phase of the n-th block that passes through the stages.
template <typename S>
struct Turn {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == S::kStages) stage = 0, phase ^= 1;
  }
};

/// Starts all copies; one thread does it.
template <typename S>
struct Producer {
  const AttentionArguments& a;
  const HaloBoxes& halo;
  const TensorMaps& maps;
  ptx::SharedAddress shared;
  Barriers<S> barriers;

  __device__ __forceinline__ void run() const {
    Turn<S> turn;
    uint32_t task_phase = 0;
    for (uint32_t number = blockIdx.x; number < number_of_tasks<S>(a); number += gridDim.x, task_phase ^= 1) {
      const Task task = task_of<S>(a, halo, number);
      hopper::wait(barriers.queries_read(), task_phase ^ 1);
      hopper::arrive_expecting(barriers.queries_here(), S::kQueryBytes);
      TILEDATTN_UNROLL_ALL
      for (int panel = 0; panel < S::kPanels; ++panel) {
        hopper::copy_box(shared + panel * S::kQueryPanel, maps.q, barriers.queries_here(), panel * kPanelColumns,
                         task.first_row, task.head, task.batch, task.tile);
      }
      for (int block = 0; block < task.blocks; ++block, turn.next()) {
        const int stage = turn.stage;
        hopper::wait(barriers.keys_read(stage), turn.phase ^ 1);
        start_block(task, block, maps.k, maps.k_boxes, barriers.keys_here(stage),
                    shared + S::kKeysAt + stage * S::kKeyBytes);
        hopper::wait(barriers.values_read(stage), turn.phase ^ 1);
        start_block(task, block, maps.v, maps.v_boxes, barriers.values_here(stage),
                    shared + S::kValuesAt + stage * S::kKeyBytes);
      }
    }
  }

 private:
  __device__ __forceinline__ void start_block(const Task& task, int block, const hopper::TensorMap& own,
                                              const hopper::TensorMap& boxes, ptx::SharedAddress here,
                                              ptx::SharedAddress to) const {
    const int32_t head = task.head / a.shared_by;
    hopper::arrive_expecting(here, S::kKeyBytes);
    if (block < task.own_blocks) {
      TILEDATTN_UNROLL_ALL
      for (int panel = 0; panel < S::kPanels; ++panel) {
        hopper::copy_box(to + panel * S::kKeyPanel, own, here, panel * kPanelColumns, block * S::kKeys, head,
                         task.batch, task.tile);
      }
      return;
    }
    const int32_t first = (block - task.own_blocks) * S::kKeys;
    for (int32_t key = 0; key < S::kKeys; key += halo.tokens_per_box) {
      // where no box is left, one beyond the tensor: zeros, which the values of weight 0 must be
      HaloBox box = {0, halo.rows, 0, 0};
      if (first + key < task.halo_tokens) box = task.boxes[(first + key) / halo.tokens_per_box];
      const int32_t entry = (task.tile + box.tile_delta) * a.batch + task.batch;
      TILEDATTN_UNROLL_ALL
      for (int panel = 0; panel < S::kPanels; ++panel) {
        hopper::copy_box(to + panel * S::kKeyPanel + key * kPanelRowBytes, boxes, here, panel * kPanelColumns, box.x,
                         box.row, head, entry);
      }
    }
  }
};

/// A warpgroup's 64 queries.
template <typename S>
struct Consumer {
  static constexpr int kScores = S::kKeys / 8, kSums = S::kDim / 8;
  const AttentionArguments& a;
  const HaloBoxes& halo;
  ptx::SharedAddress shared;
  Barriers<S> barriers;
  int group, lane, warp;  // which warpgroup; which warp of it

  __device__ __forceinline__ Consumer(const AttentionArguments& a, const HaloBoxes& halo, ptx::SharedAddress shared,
                                      Barriers<S> barriers)
      : a(a), halo(halo), shared(shared), barriers(barriers) {
    group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, warp = threadIdx.x % 128 / 32;
  }

  /// This warp's first row, of the task's.
  __device__ __forceinline__ int first_row() const { return 64 * group + 16 * warp; }
  __device__ __forceinline__ bool speaks() const { return threadIdx.x % 128 == 0; }

  __device__ __forceinline__ void run() const {
    Turn<S> turn;
    uint32_t task_phase = 0;
    for (uint32_t number = blockIdx.x; number < number_of_tasks<S>(a); number += gridDim.x, task_phase ^= 1) {
      attend(task_of<S>(a, halo, number), turn, task_phase);
    }
  }

 private:
  /// Starts the products of queries and a stage's keys.
  __device__ __forceinline__ void start_scores(int stage, float (&scores)[kScores][4]) const {
    const ptx::SharedAddress queries = shared + 64 * group * kPanelRowBytes;
    const ptx::SharedAddress keys = shared + S::kKeysAt + stage * S::kKeyBytes;
    hopper::pin(scores);
    hopper::begin_products();
    TILEDATTN_UNROLL_ALL
    for (int step = 0; step < S::kDim / 16; ++step) {
      const uint32_t within = step % 4 * 32;
      const uint64_t query = matrix_descriptor(queries + step / 4 * S::kQueryPanel + within, 0);
      const uint64_t key = matrix_descriptor(keys + step / 4 * S::kKeyPanel + within, 0);
      hopper::multiply_rows<typename S::T>(scores, query, key, step > 0);
    }
    hopper::commit_products();
  }

  /// Starts the products of weights and a stage's values.
  __device__ __forceinline__ void start_sums(int stage, const uint32_t (&weights)[S::kKeys / 16][4],
                                             float (&sums)[kSums][4]) const {
    const ptx::SharedAddress values = shared + S::kValuesAt + stage * S::kKeyBytes;
    hopper::pin(sums);
    hopper::begin_products();
    TILEDATTN_UNROLL_ALL
    for (int step = 0; step < S::kKeys / 16; ++step) {
      const uint64_t value = matrix_descriptor(values + step * 16 * kPanelRowBytes, S::kKeyPanel);
      hopper::multiply_add<typename S::T>(sums, weights[step], value);
    }
    hopper::commit_products();
  }

  /// The bias of a key of a block, in base 2; nothing of a prefix row sees the halo.
  __device__ __forceinline__ float bias(const Task& task, int block, int key) const {
    if (block >= task.own_blocks) {
      return (block - task.own_blocks) * S::kKeys + key < task.halo_tokens ? a.halo_shift : -INFINITY;
    }
    const int token = block * S::kKeys + key;
    bool seen = token < a.sequence;
    if (a.mask != nullptr && token < a.prefix) {
      seen = a.mask[(static_cast<int64_t>(task.tile) * a.batch + task.batch) * a.prefix + token];
    }
    return seen ? 0.0f : -INFINITY;
  }

  __device__ __forceinline__ bool flagged(const Task& task, int block) const {
    if (block < task.own_blocks) {
      return (block + 1) * S::kKeys > a.sequence || (a.mask != nullptr && block * S::kKeys < a.prefix);
    }
    return (block - task.own_blocks + 1) * S::kKeys > task.halo_tokens || task.first_row < a.prefix;
  }

  /// Scores become weights.
  __device__ __forceinline__ void weigh(const Task& task, int block, float (&scores)[kScores][4],
                                        SoftmaxState (&state)[2], float (&factor)[2]) const {
    const bool halo_block = block >= task.own_blocks;
    float scale = a.scale, shift = halo_block ? a.halo_shift : 0.0f;
    if (flagged(task, block)) {
      const int seeing = halo_block ? a.prefix - task.first_row - first_row() : 0;
      TILEDATTN_UNROLL_ALL
      for (int i = 0; i < kScores; ++i) {
        TILEDATTN_UNROLL_ALL
        for (int j = 0; j < 4; ++j) {
          const float added = bias(task, block, 8 * i + fragment_column(lane) + j % 2);
          const bool sees = fragment_row(lane, j / 2) >= seeing;
          scores[i][j] = sees ? fmaf(scores[i][j], scale, added) : -INFINITY;
        }
      }
      scale = 1.0f, shift = 0.0f;
    }
    TILEDATTN_UNROLL_ALL
    for (int half = 0; half < 2; ++half) factor[half] = weigh_row(scores, half, scale, shift, state[half]);
  }

  __device__ __forceinline__ void pack(const float (&scores)[kScores][4], uint32_t (&weights)[S::kKeys / 16][4]) const {
    TILEDATTN_UNROLL_ALL
    for (int step = 0; step < S::kKeys / 16; ++step) pack_weights<typename S::T>(scores, step, weights[step]);
  }

  __device__ __forceinline__ void attend(const Task& task, Turn<S>& turn, uint32_t task_phase) const {
    float sums[kSums][4] = {}, scores[kScores][4];
    SoftmaxState state[2] = {empty_softmax(), empty_softmax()};
    uint32_t weights[S::kKeys / 16][4];
    float factor[2];
    hopper::wait(barriers.queries_here(), task_phase);
    hopper::wait(barriers.keys_here(turn.stage), turn.phase);
    start_scores(turn.stage, scores);
    hopper::wait_for_products<0>();
    hopper::pin(scores);
    if (speaks()) hopper::arrive(barriers.keys_read(turn.stage));
    weigh(task, 0, scores, state, factor);
    pack(scores, weights);
    for (int block = 1; block < task.blocks; ++block) {
      const Turn<S> before = turn;
      turn.next();
      hopper::wait(barriers.keys_here(turn.stage), turn.phase);
      start_scores(turn.stage, scores);
      hopper::wait(barriers.values_here(before.stage), before.phase);
      start_sums(before.stage, weights, sums);
      hopper::wait_for_products<1>();
      hopper::pin(scores);
      if (speaks()) hopper::arrive(barriers.keys_read(turn.stage));
      weigh(task, block, scores, state, factor);
      hopper::wait_for_products<0>();
      hopper::pin(sums);
      if (speaks()) hopper::arrive(barriers.values_read(before.stage));
      TILEDATTN_UNROLL_ALL
      for (int half = 0; half < 2; ++half) rescale_row(sums, half, factor[half]);
      pack(scores, weights);
    }
    hopper::wait(barriers.values_here(turn.stage), turn.phase);
    start_sums(turn.stage, weights, sums);
    hopper::wait_for_products<0>();
    hopper::pin(sums);
    if (speaks()) hopper::arrive(barriers.values_read(turn.stage));
    turn.next();
    TILEDATTN_UNROLL_ALL
    for (int half = 0; half < 2; ++half) state[half].sum = whole_sum(state[half].sum);
    store(task, sums, state);
  }

  /// Results take the place of the warp's queries in shared memory, from where they are written in whole chunks. All
  /// products of queries are done, so nobody reads them any more but for this warp's neighbours, whose rows are theirs.
  __device__ __forceinline__ void store(const Task& task, const float (&sums)[kSums][4],
                                        const SoftmaxState (&state)[2]) const {
    const ptx::SharedAddress rows = shared + first_row() * kPanelRowBytes;
    TILEDATTN_UNROLL_ALL
    for (int half = 0; half < 2; ++half) {
      const float factor = softmax_factor(state[half]);
      TILEDATTN_UNROLL_ALL
      for (int i = 0; i < kSums; ++i) {
        const uint32_t at = rows + i / 8 * S::kQueryPanel + fragment_row(lane, half) * kPanelRowBytes +
                            (8 * (i % 8) + fragment_column(lane)) * 2;
        ptx::store_shared(permuted(at),
                          ptx::pack<typename S::T>(sums[i][2 * half] * factor, sums[i][2 * half + 1] * factor));
      }
    }
    __syncwarp();
    const int64_t first = (static_cast<int64_t>(task.tile) * a.batch + task.batch) * a.sequence;
    TILEDATTN_UNROLL_ALL
    for (int turn = 0; turn < 16 * kSums / 32; ++turn) {
      const int row = (turn * 32 + lane) / kSums, chunk = (turn * 32 + lane) % kSums;
      const int token = task.first_row + first_row() + row;
      const uint32_t from = rows + chunk / 8 * S::kQueryPanel + row * kPanelRowBytes + chunk % 8 * 16;
      if (token < a.sequence && chunk * kChunk < a.head_dim) {
        const int64_t at = ((first + token) * a.heads + task.head) * a.head_dim + chunk * kChunk;
        *reinterpret_cast<uint4*>(static_cast<uint16_t*>(a.out) + at) = ptx::load_shared_16(permuted(from));
      }
    }
    if (a.lse != nullptr && lane % 4 == 0) store_lse(task, state);
    hopper::fence_copy_engine();
    warpgroup_barrier();
    if (speaks()) hopper::arrive(barriers.queries_read());
  }

  __device__ __forceinline__ void store_lse(const Task& task, const SoftmaxState (&state)[2]) const {
    const int64_t head = (static_cast<int64_t>(task.tile) * a.batch + task.batch) * a.heads + task.head;
    TILEDATTN_UNROLL_ALL
    for (int half = 0; half < 2; ++half) {
      const int token = task.first_row + first_row() + fragment_row(lane, half);
      if (token < a.sequence) a.lse[head * a.sequence + token] = softmax_lse(state[half]);
    }
  }

  /// The threads of this warpgroup meet.
  __device__ __forceinline__ void warpgroup_barrier() const { hopper::meet(1 + group, 128); }
};

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    attention_fwd(const __grid_constant__ AttentionArguments a, const __grid_constant__ HaloBoxes halo,
                  const __grid_constant__ TensorMaps maps) {
  TILEDATTN_SHARED_MEMORY(memory);
  const ptx::SharedAddress shared = ptx::shared_address(memory);
  const Barriers<S> barriers{shared + S::kBarriersAt};
  if (threadIdx.x == 0) barriers.make();
  __syncthreads();
  if (threadIdx.x < 128) {
    hopper::give_registers<24>();
    if (threadIdx.x == 0) Producer<S>{a, halo, maps, shared, barriers}.run();
  } else {
    hopper::take_registers<240>();
    Consumer<S>(a, halo, shared, barriers).run();
  }
}

}  // namespace tiledattn::cuda::sm90
