// The forward kernel of cross-tile attention for sm_80 and newer: mma.sync, cp.async, ldmatrix.
//
// A thread block serves kRows queries of one tile, batch entry and head. Its keys come in blocks of kKeys, the tile's
// own first and then the halo's, through two places in shared memory: one is filled while the other is read. Where a
// halo block's keys lie is brought a block earlier still. Blocks whose logits need a bias per key or row (a tail, a
// mask, prefix rows beside canvas rows) are flagged; the others cost one multiply-add a score.
#pragma once

#include "cuda/attention.h"
#include "cuda/products.cuh"

namespace tiledattn::cuda::sm80 {

template <typename Element, int dim, int rows, int keys, int warps>
struct Shape {
  using T = Element;
  using P = Products<Element>;
  static constexpr int kDim = dim, kRows = rows, kKeys = keys, kWarps = warps;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kBands = kRows / (16 * kWarps);  // 16-row fragments of a warp
  static constexpr int kChunks = kDim / P::kChunk;      // of 16 bytes, in a row
  static constexpr int kRowThreads = 8;                 // that move one row
  static constexpr int kRowsAtOnce = kThreads / kRowThreads;
  static constexpr int kTurns = kKeys / kRowsAtOnce;  // rows of a block of keys that a thread moves
  static constexpr uint32_t kRowBytes = sizeof(Element) * kDim;
  static constexpr uint32_t kKeyBytes = kKeys * kRowBytes;
  // shared memory: queries; keys and values of two blocks; where halo tokens lie and biases, of two blocks each
  static constexpr uint32_t kKeysAt = kRows * kRowBytes;
  static constexpr uint32_t kTokensAt = kKeysAt + 2 * 2 * kKeyBytes;
  static constexpr uint32_t kBiasAt = kTokensAt + 2 * kKeys * sizeof(HaloToken);
  static constexpr uint32_t kSharedBytes = kBiasAt + 2 * kKeys * sizeof(float);
  static_assert(kBands * 16 * kWarps == kRows && kTurns * kRowsAtOnce == kKeys && kKeys % 16 == 0);
  static_assert(kKeys <= kThreads);
};

/// The shape for head dims up to `dim`: chosen so that nothing is spilled, and two thread blocks fit on a
/// multiprocessor.
template <typename Element, int dim>
using ShapeFor =
    Shape<Element, dim, dim * sizeof(Element) >= 512 ? 64 : 128, dim * sizeof(Element) == 128 ? 64 : 32, 4>;

/// Which queries a thread block serves, and how many keys they see.
struct Task {
  int32_t tile, batch, head, first_row;
  int32_t own_blocks, blocks;
  int32_t halo_tokens;
  const HaloToken* halo;
};

template <typename S>
__device__ __forceinline__ Task task_of(const AttentionArguments& a, uint32_t number) {
  const uint32_t row_blocks = (a.sequence + S::kRows - 1) / S::kRows;
  Task task;
  task.first_row = static_cast<int32_t>(number % row_blocks) * S::kRows;
  number /= row_blocks;
  task.tile = static_cast<int32_t>(number % a.tiles), number /= a.tiles;
  task.head = static_cast<int32_t>(number % a.heads);
  task.batch = static_cast<int32_t>(number / a.heads);
  task.own_blocks = (a.sequence + S::kKeys - 1) / S::kKeys;
  task.halo_tokens = 0, task.halo = nullptr;
  if (a.halo != nullptr && task.first_row + S::kRows > a.prefix) {  // prefix rows see no halo
    const int32_t of_class = a.class_of_tile[task.tile];
    const int64_t first = a.starts[of_class];
    task.halo_tokens = static_cast<int32_t>(a.starts[of_class + 1] - first);
    task.halo = a.halo + first;
  }
  task.blocks = task.own_blocks + (task.halo_tokens + S::kKeys - 1) / S::kKeys;
  return task;
}

/// Brings blocks of keys and values into shared memory.
template <typename S>
struct Loader {
  const AttentionArguments& a;
  const Task& task;
  const typename S::T *keys, *values;  // of the batch entry and head
  ptx::SharedAddress shared;

  __device__ __forceinline__ Loader(const AttentionArguments& a, const Task& task, ptx::SharedAddress shared)
      : a(a), task(task), shared(shared) {
    const int64_t head = task.head / a.shared_by;
    keys = static_cast<const typename S::T*>(a.k) + task.batch * a.k_stride[1] + head * a.k_stride[3];
    values = static_cast<const typename S::T*>(a.v) + task.batch * a.v_stride[1] + head * a.v_stride[3];
  }

  __device__ __forceinline__ static int first_row() { return threadIdx.x / S::kRowThreads; }
  __device__ __forceinline__ static int first_chunk() { return threadIdx.x % S::kRowThreads; }
  __device__ __forceinline__ ptx::SharedAddress place(int block) const {
    return shared + S::kKeysAt + block % 2 * (2 * S::kKeyBytes);
  }
  __device__ __forceinline__ ptx::SharedAddress tokens(int block) const {
    return shared + S::kTokensAt + block % 2 * (S::kKeys * sizeof(HaloToken));
  }
  __device__ __forceinline__ ptx::SharedAddress bias(int block) const {
    return shared + S::kBiasAt + block % 2 * (S::kKeys * sizeof(float));
  }
  __device__ __forceinline__ int halo_entry(int block) const { return (block - task.own_blocks) * S::kKeys; }

  /// Whether logits of a block need more than a shift.
  __device__ __forceinline__ bool flagged(int block) const {
    if (block < task.own_blocks) {
      return (block + 1) * S::kKeys > a.sequence || (a.mask != nullptr && block * S::kKeys < a.prefix);
    }
    return halo_entry(block) + S::kKeys > task.halo_tokens || task.first_row < a.prefix;
  }

  /// Starts to bring where the keys of a halo block lie.
  __device__ __forceinline__ void look_ahead(int block) const {
    if (block < task.own_blocks || block >= task.blocks) return;
    const int key = threadIdx.x, entry = halo_entry(block) + key;
    if (key < S::kKeys && entry < task.halo_tokens) {
      ptx::copy_8(tokens(block) + key * sizeof(HaloToken), task.halo + entry);
    }
  }

  /// Starts to bring a block, if there is one.
  __device__ __forceinline__ void start(int block) const {
    if (block >= task.blocks) return;
    TILEDATTN_UNROLL_ALL
    for (int turn = 0; turn < S::kTurns; ++turn) {
      const int row = first_row() + turn * S::kRowsAtOnce;
      if (block < task.own_blocks) {
        const int token = block * S::kKeys + row;
        start_row(row, block, task.tile, token, token < a.sequence);
      } else {
        const bool present = halo_entry(block) + row < task.halo_tokens;
        const int2 place = present ? ptx::load_shared_8(tokens(block) + row * sizeof(HaloToken)) : int2{0, 0};
        start_row(row, block, task.tile + place.x, a.prefix + place.y, present);
      }
    }
    if (flagged(block)) set_bias(block);
  }

 private:
  __device__ __forceinline__ void start_row(int row, int block, int64_t tile, int64_t token, bool present) const {
    if (!present) tile = token = 0;
    const auto* key = keys + tile * a.k_stride[0] + token * a.k_stride[2];
    const auto* value = values + tile * a.v_stride[0] + token * a.v_stride[2];
    const ptx::SharedAddress to = place(block);
    TILEDATTN_UNROLL_ALL
    for (int chunk = first_chunk(); chunk < S::kChunks; chunk += S::kRowThreads) {
      const bool here = present && chunk * S::P::kChunk < a.head_dim;
      const uint32_t at = swizzled(row, chunk, S::kChunks);
      ptx::copy_16(to + at, here ? key + chunk * S::P::kChunk : key, here);
      ptx::copy_16(to + S::kKeyBytes + at, here ? value + chunk * S::P::kChunk : value, here);
    }
  }

  __device__ __forceinline__ void set_bias(int block) const {
    for (int key = threadIdx.x; key < S::kKeys; key += S::kThreads) {
      float shift;
      if (block < task.own_blocks) {
        const int token = block * S::kKeys + key;
        bool seen = token < a.sequence;
        if (a.mask != nullptr && token < a.prefix) {
          seen = a.mask[(static_cast<int64_t>(task.tile) * a.batch + task.batch) * a.prefix + token];
        }
        shift = seen ? 0.0f : -INFINITY;
      } else {
        shift = halo_entry(block) + key < task.halo_tokens ? a.halo_shift : -INFINITY;
      }
      ptx::store_shared(bias(block) + 4 * key, shift);
    }
  }
};

/// A warp's queries, sums and softmax.
template <typename S>
struct Warp {
  static constexpr int kSteps = S::kDim / S::P::kStep;
  float sums[S::kBands][S::kDim / 8][4];
  SoftmaxState state[S::kBands][2];  // sum: of this lane's columns only, until `finish`
  ptx::SharedAddress queries;        // the warp's first row
  int lane, first_row;               // of the block

  __device__ __forceinline__ explicit Warp(ptx::SharedAddress shared) {
    lane = threadIdx.x % 32;
    first_row = threadIdx.x / 32 * (16 * S::kBands);
    queries = shared + first_row * S::kRowBytes;
    TILEDATTN_UNROLL_ALL
    for (int band = 0; band < S::kBands; ++band) {
      state[band][0] = state[band][1] = empty_softmax();
      TILEDATTN_UNROLL_ALL
      for (int i = 0; i < S::kDim / 8; ++i) {
        TILEDATTN_UNROLL_ALL
        for (int j = 0; j < 4; ++j) sums[band][i][j] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void load_queries(int band, int step, uint32_t (&to)[4]) const {
    const uint32_t row = 16 * band + matrix_row(lane, true), chunk = 2 * step + matrix_chunk(lane, true);
    S::P::load(to, queries + swizzled(row, chunk, S::kChunks));
  }

  /// Products of queries and keys.
  __device__ __forceinline__ void score(ptx::SharedAddress keys, float (&scores)[S::kBands][S::kKeys / 8][4]) const {
    TILEDATTN_UNROLL_ALL
    for (int step = 0; step < kSteps; ++step) {
      uint32_t query[S::kBands][4];
      TILEDATTN_UNROLL_ALL
      for (int band = 0; band < S::kBands; ++band) load_queries(band, step, query[band]);
      TILEDATTN_UNROLL_ALL
      for (int pair = 0; pair < S::kKeys / 16; ++pair) {
        uint32_t key[4];
        const uint32_t row = 16 * pair + matrix_row(lane, false), chunk = 2 * step + matrix_chunk(lane, false);
        S::P::load(key, keys + swizzled(row, chunk, S::kChunks));
        TILEDATTN_UNROLL_ALL
        for (int band = 0; band < S::kBands; ++band) {
          ptx::multiply<typename S::T>(scores[band][2 * pair], query[band], key[0], key[1]);
          ptx::multiply<typename S::T>(scores[band][2 * pair + 1], query[band], key[2], key[3]);
        }
      }
    }
  }

  /// Adds the weighted values to the sums.
  __device__ __forceinline__ void accumulate(ptx::SharedAddress values,
                                             const float (&weights)[S::kBands][S::kKeys / 8][4]) {
    TILEDATTN_UNROLL_ALL
    for (int step = 0; step < S::kKeys / S::P::kStep; ++step) {
      uint32_t weight[S::kBands][4];
      TILEDATTN_UNROLL_ALL
      for (int band = 0; band < S::kBands; ++band) S::P::pack(weights[band], step, weight[band]);
      TILEDATTN_UNROLL_ALL
      for (int pair = 0; pair < S::kDim / 16; ++pair) {
        uint32_t value[4];
        S::P::load_values(value, values, step, pair, lane, S::kChunks);
        TILEDATTN_UNROLL_ALL
        for (int band = 0; band < S::kBands; ++band) {
          ptx::multiply<typename S::T>(sums[band][2 * pair], weight[band], value[0], value[1]);
          ptx::multiply<typename S::T>(sums[band][2 * pair + 1], weight[band], value[2], value[3]);
        }
      }
    }
  }

  /// Scores become logits, by what stands in `bias`; rows before `first_seeing` (of the block) see nothing.
  __device__ __forceinline__ void add_bias(ptx::SharedAddress bias, float scale, int first_seeing,
                                           float (&scores)[S::kBands][S::kKeys / 8][4]) const {
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < S::kKeys / 8; ++i) {
      TILEDATTN_UNROLL_ALL
      for (int j = 0; j < 2; ++j) {
        const float shift = ptx::load_shared_float(bias + 4 * (8 * i + fragment_column(lane) + j));
        TILEDATTN_UNROLL_ALL
        for (int band = 0; band < S::kBands; ++band) {
          TILEDATTN_UNROLL_ALL
          for (int half = 0; half < 2; ++half) {
            const bool sees = first_row + 16 * band + fragment_row(lane, half) >= first_seeing;
            float& score = scores[band][i][2 * half + j];
            score = sees ? fmaf(score, scale, shift) : -INFINITY;
          }
        }
      }
    }
  }

  /// The whole step.
  __device__ __forceinline__ void attend(const Loader<S>& loader, int block) {
    float scores[S::kBands][S::kKeys / 8][4] = {};
    const ptx::SharedAddress keys = loader.place(block);
    score(keys, scores);
    const bool halo = block >= loader.task.own_blocks;
    float scale = loader.a.scale, shift = halo ? loader.a.halo_shift : 0.0f;
    if (loader.flagged(block)) {
      add_bias(loader.bias(block), scale, halo ? loader.a.prefix - loader.task.first_row : 0, scores);
      scale = 1.0f, shift = 0.0f;
    }
    TILEDATTN_UNROLL_ALL
    for (int band = 0; band < S::kBands; ++band) {
      TILEDATTN_UNROLL_ALL
      for (int half = 0; half < 2; ++half) {
        rescale_row(sums[band], half, weigh_row(scores[band], half, scale, shift, state[band][half]));
      }
    }
    accumulate(keys + S::kKeyBytes, scores);
  }

  /// Sums over the columns of all lanes.
  __device__ __forceinline__ void finish() {
    TILEDATTN_UNROLL_ALL
    for (int band = 0; band < S::kBands; ++band) {
      TILEDATTN_UNROLL_ALL
      for (int half = 0; half < 2; ++half) {
        state[band][half].sum = whole_sum(state[band][half].sum);
      }
    }
  }

  /// Results take the place of the warp's queries in shared memory, from where they are written in whole chunks.
  __device__ __forceinline__ void store(const AttentionArguments& a, const Task& task) {
    __syncwarp();
    TILEDATTN_UNROLL_ALL
    for (int band = 0; band < S::kBands; ++band) {
      TILEDATTN_UNROLL_ALL
      for (int half = 0; half < 2; ++half) {
        const float factor = softmax_factor(state[band][half]);
        const uint32_t row = 16 * band + fragment_row(lane, half);
        TILEDATTN_UNROLL_ALL
        for (int i = 0; i < S::kDim / 8; ++i) {
          const uint32_t dim = 8 * i + fragment_column(lane);
          const float* from = sums[band][i] + 2 * half;
          S::P::store(
              queries + swizzled(row, dim / S::P::kChunk, S::kChunks) + dim % S::P::kChunk * sizeof(typename S::T),
              from[0] * factor, from[1] * factor);
        }
      }
    }
    __syncwarp();
    const int64_t first = (static_cast<int64_t>(task.tile) * a.batch + task.batch) * a.sequence;
    TILEDATTN_UNROLL_ALL
    for (int turn = 0; turn < S::kBands * 16 * S::kChunks / 32; ++turn) {
      const int row = (turn * 32 + lane) / S::kChunks, chunk = (turn * 32 + lane) % S::kChunks;
      const int token = task.first_row + first_row + row;
      if (token < a.sequence && chunk * S::P::kChunk < a.head_dim) {
        const int64_t at = ((first + token) * a.heads + task.head) * a.head_dim + chunk * S::P::kChunk;
        *reinterpret_cast<uint4*>(static_cast<typename S::T*>(a.out) + at) =
            ptx::load_shared_16(queries + swizzled(row, chunk, S::kChunks));
      }
    }
    if (a.lse != nullptr && lane % 4 == 0) store_lse(a, task);
  }

  __device__ __forceinline__ void store_lse(const AttentionArguments& a, const Task& task) const {
    const int64_t head = (static_cast<int64_t>(task.tile) * a.batch + task.batch) * a.heads + task.head;
    TILEDATTN_UNROLL_ALL
    for (int band = 0; band < S::kBands; ++band) {
      TILEDATTN_UNROLL_ALL
      for (int half = 0; half < 2; ++half) {
        const int token = task.first_row + first_row + 16 * band + fragment_row(lane, half);
        if (token < a.sequence) a.lse[head * a.sequence + token] = softmax_lse(state[band][half]);
      }
    }
  }
};

/// Starts to bring the queries; rows beyond the last are zeros.
template <typename S>
__device__ __forceinline__ void start_queries(const AttentionArguments& a, const Task& task,
                                              ptx::SharedAddress shared) {
  const auto* queries = static_cast<const typename S::T*>(a.q) + task.tile * a.q_stride[0] +
                        task.batch * a.q_stride[1] + task.head * a.q_stride[3];
  TILEDATTN_UNROLL_ALL
  for (int turn = 0; turn < S::kRows / S::kRowsAtOnce; ++turn) {
    const int row = threadIdx.x / S::kRowThreads + turn * S::kRowsAtOnce;
    const bool present = task.first_row + row < a.sequence;
    const auto* from = queries + static_cast<int64_t>(present ? task.first_row + row : 0) * a.q_stride[2];
    TILEDATTN_UNROLL_ALL
    for (int chunk = threadIdx.x % S::kRowThreads; chunk < S::kChunks; chunk += S::kRowThreads) {
      const bool here = present && chunk * S::P::kChunk < a.head_dim;
      ptx::copy_16(shared + swizzled(row, chunk, S::kChunks), here ? from + chunk * S::P::kChunk : from, here);
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads) attention_fwd(const __grid_constant__ AttentionArguments a) {
  TILEDATTN_SHARED_MEMORY(memory);
  const ptx::SharedAddress shared = ptx::shared_address(memory);
  const Task task = task_of<S>(a, blockIdx.x);
  start_queries<S>(a, task, shared);
  const Loader<S> loader(a, task, shared);
  loader.start(0);  // the tile's own: it needs no look ahead
  loader.look_ahead(1);
  Warp<S> warp(shared);
  for (int block = 0; block < task.blocks; ++block) {
    ptx::wait_for_copies();
    __syncthreads();  // the block is here, and nobody reads the one before it any more
    loader.start(block + 1);
    loader.look_ahead(block + 2);
    warp.attend(loader, block);
  }
  warp.finish();
  warp.store(a, task);
}

}  // namespace tiledattn::cuda::sm80
