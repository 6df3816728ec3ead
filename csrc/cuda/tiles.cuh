// Kernels that cut, pad and blend tiles: every element of a result is written once, gathered from where it comes from.
#pragma once

#include <type_traits>

#include "cuda/platform.cuh"
#include "cuda/tiles_call.h"
#include "cuda/tiles_memory.cuh"

namespace tiledattn::cuda {

constexpr int kTileThreads = 256;

__device__ __forceinline__ AxisPlace place_at(const AxisPlace* table, uint64_t entry) {
  return table ? load<AxisPlace>(reinterpret_cast<const char*>(table + entry)) : AxisPlace{0, 0};
}

/// Copies `kBytes` of each of a thread's rows.
template <int kBytes>
__global__ void __launch_bounds__(kTileThreads) copy_tiles_kernel(const CopyTiles call) {
  constexpr int kRows = rows_of_copy(kBytes);
  const TileWork& work = call.work;
  const TileSpot spot = spot_of(work, blockIdx.x, blockIdx.y, threadIdx.x, threadIdx.y);
  if (!spot.inside) return;
  const uint32_t tile = quotient(call.batches, spot.outer), batch = spot.outer - tile * call.batches.value;
  const uint32_t line_of_tiles = quotient(call.grid_x, tile);
  const uint32_t tile_x = tile - line_of_tiles * call.grid_x.value;
  const uint32_t tile_z = quotient(call.grid_y, line_of_tiles);
  const uint32_t tile_y = line_of_tiles - tile_z * call.grid_y.value;
  const uint32_t vector = static_cast<uint32_t>(call.vector);
  const AxisPlace z = place_at(call.places[0], static_cast<uint64_t>(tile_z) * call.extent[0] + spot.z);
  const AxisPlace y = place_at(call.places[1], static_cast<uint64_t>(tile_y) * call.extent[1] + spot.y);
  const AxisPlace x = place_at(call.places[2], static_cast<uint64_t>(tile_x) * call.extent[2] + spot.x * vector);
  const bool known = holds(call.source, 0, z, 1) && holds(call.source, 1, y, 1) && holds(call.source, 2, x, vector);
  const char* from = call.source.data + batch * call.source.batch_stride + spot.row * call.source.row_stride;
  if (known) from += place_offset(call.source, z, y, x);
  const int64_t from_step = work.down * call.source.row_stride, to_step = result_step(work) * kBytes;
  char* to = call.out + result_offset(work, spot) * kBytes;
  uint32_t row = spot.row;
#pragma unroll 1
  for (uint32_t done = 0; done < work.repeat && row < work.rows; done += kRows) {
    Bytes<kBytes> values[kRows] = {};
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < kRows; ++i) {
      if (known && row + i * work.down < work.rows) values[i] = load<Bytes<kBytes>>(from);
      from += from_step;
    }
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < kRows; ++i) {
      if (row < work.rows) store(to, values[i]);
      row += work.down, to += to_step;
    }
  }
}

template <typename Sum>
__device__ __forceinline__ Sum weight_at(const void* table, const TileSource& source, int axis, AxisPlace place) {
  const uint64_t entry = static_cast<uint64_t>(place.tile) * source.extent[axis] + place.local;
  return table ? load<Run<Sum, 1>>(static_cast<const char*>(table) + entry * sizeof(Sum)).element[0] : Sum{1};
}

/// The weights of a vector's positions, times `factor`.
template <typename Sum, int kVector>
__device__ __forceinline__ void load_weights(Sum (&weights)[kVector], const char* table, uint64_t entry, Sum factor) {
  constexpr int kPart = kVector * sizeof(Sum) > 16 ? 16 / sizeof(Sum) : kVector;
  TILEDATTN_UNROLL_ALL
  for (int i = 0; i < kVector; i += kPart) {
    const auto part = load<Run<Sum, kPart>>(table + (entry + i) * sizeof(Sum));
    TILEDATTN_UNROLL_ALL
    for (int j = 0; j < kPart; ++j) weights[i + j] = factor * part.element[j];
  }
}

/// What a thread adds up: `kRows` rows of one vector.
template <typename T, int kVector>
struct BlendSums {
  using Sum = Accumulator<T>;
  static constexpr int kRows = rows_of_blend(kVector);

  Sum sum[kRows][kVector] = {};
  int64_t step;
  uint32_t left, down;  // rows from the thread's first one on, rows from one to the next

  __device__ __forceinline__ void add(const char* from, const Sum (&weights)[kVector]) {
    Run<T, kVector> values[kRows] = {};
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < kRows; ++i) {
      if (i * down < left) values[i] = load<Run<T, kVector>>(from);
      from += step;
    }
    TILEDATTN_UNROLL_ALL
    for (int i = 0; i < kRows; ++i) {
      TILEDATTN_UNROLL_ALL
      for (int j = 0; j < kVector; ++j) {
        sum[i][j] = multiply_add(static_cast<Sum>(widen(values[i].element[j])), weights[j], sum[i][j]);
      }
    }
  }
};

/// Adds the tiles that cover a vector, ascending, in the accumulator's precision.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads) blend_tiles_kernel(const BlendTiles call) {
  using Sum = Accumulator<T>;
  const TileWork& work = call.work;
  const TileSource& source = call.source;
  const TileSpot spot = spot_of(work, blockIdx.x, blockIdx.y, threadIdx.x, threadIdx.y);
  if (!spot.inside) return;
  BlendSums<T, kVector> sums;
  sums.step = work.down * source.row_stride;
  sums.left = work.rows - spot.row, sums.down = work.down;
  const char* from = source.data + spot.outer * source.batch_stride + spot.row * source.row_stride;
  for (uint32_t iz = 0; iz < call.count[0]; ++iz) {
    const AxisPlace z = place_at(call.covers[0], static_cast<uint64_t>(spot.z) * call.count[0] + iz);
    if (!holds(source, 0, z, 1)) continue;
    const Sum weight_z = weight_at<Sum>(call.weights[0], source, 0, z);
    for (uint32_t iy = 0; iy < call.count[1]; ++iy) {
      const AxisPlace y = place_at(call.covers[1], static_cast<uint64_t>(spot.y) * call.count[1] + iy);
      if (!holds(source, 1, y, 1)) continue;
      const Sum weight = weight_z * weight_at<Sum>(call.weights[1], source, 1, y);
#pragma unroll 1
      for (uint32_t ix = 0; ix < call.count[2]; ++ix) {
        const uint64_t position = static_cast<uint64_t>(spot.x) * kVector;
        const AxisPlace x = place_at(call.covers[2], position * call.count[2] + ix);
        if (!holds(source, 2, x, kVector)) continue;
        const uint64_t entry = static_cast<uint64_t>(x.tile) * source.extent[2] + x.local;
        Sum weights[kVector];
        load_weights(weights, static_cast<const char*>(call.weights[2]), entry, weight);
        sums.add(from + place_offset(source, z, y, x), weights);
      }
    }
  }
  char* to = call.out + result_offset(work, spot) * static_cast<int64_t>(sizeof(Run<T, kVector>));
  TILEDATTN_UNROLL_ALL
  for (int i = 0; i < sums.kRows; ++i) {
    Run<T, kVector> result;
    TILEDATTN_UNROLL_ALL
    for (int j = 0; j < kVector; ++j) result.element[j] = narrow<T>(sums.sum[i][j]);
    if (i * work.down < sums.left) store(to, result);
    to += result_step(work) * static_cast<int64_t>(sizeof(result));
  }
}

/// Calls `launch` with the kernel of a call and the call.
template <typename Launch>
auto with_kernel(const CopyTiles& call, const Launch& launch) {
  switch (call.vector * call.element_size) {
    case 2:
      return launch(&copy_tiles_kernel<2>, call);
    case 4:
      return launch(&copy_tiles_kernel<4>, call);
    case 8:
      return launch(&copy_tiles_kernel<8>, call);
    default:
      return launch(&copy_tiles_kernel<16>, call);
  }
}

template <typename T, typename Launch>
auto with_kernel_of(const BlendTiles& call, const Launch& launch) {
  if constexpr (sizeof(T) <= 2) {
    if (call.vector == 8) return launch(&blend_tiles_kernel<T, 8>, call);
  }
  if constexpr (sizeof(T) <= 4) {
    if (call.vector == 4) return launch(&blend_tiles_kernel<T, 4>, call);
  }
  if (call.vector == 2) return launch(&blend_tiles_kernel<T, 2>, call);
  return launch(&blend_tiles_kernel<T, 1>, call);
}

template <typename Launch>
auto with_kernel(const BlendTiles& call, const Launch& launch) {
  switch (call.type) {
    case ElementType::float16:
      return with_kernel_of<Half>(call, launch);
    case ElementType::bfloat16:
      return with_kernel_of<Brain>(call, launch);
    case ElementType::float32:
      return with_kernel_of<float>(call, launch);
    default:
      return with_kernel_of<double>(call, launch);
  }
}

}  // namespace tiledattn::cuda
