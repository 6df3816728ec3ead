// How a call of cross-tile attention is cut into items of query rows, and shared out among threads.
#pragma once

#include <cstdint>

#include "cpu/attention_item.h"

namespace tiledattn {

/// Items per thread that even out threads of different speed.
constexpr int64_t kItemsPerThread = 4;
/// Fewer rows than this don't pay for packing keys.
constexpr int64_t kLeastRows = 128;
/// Products of query and key elements below which a second thread costs more than it saves.
constexpr double kProductsPerThread = 1 << 20;

/// Rows that see the same keys, in panels of equal size.
struct Panels {
  int64_t rows, count, size;
};

struct Schedule {
  Panels prefix, canvas;
  int64_t items, most_columns;
};

inline bool halo_is_seen(const AttentionCall& call) { return call.halo_weight > 0.0; }

inline int64_t halo_length(const AttentionCall& call, int64_t of_class) {
  int64_t length = 0;
  for (int64_t r = call.run_starts[of_class]; r < call.run_starts[of_class + 1]; ++r) length += call.runs[r].length;
  return length;
}

inline Panels cut(int64_t rows, int64_t most) {
  if (rows == 0) return {0, 0, 1};
  const int64_t count = (rows + most - 1) / most;
  return {rows, count, round_up((rows + count - 1) / count, kBlockRows)};
}

inline Schedule make_schedule(const AttentionCall& call, int threads) {
  const int64_t shared_by = call.heads / call.kv_heads, groups = call.tiles * call.batch * call.kv_heads;
  const int64_t canvas = call.sequence - call.prefix;
  int64_t most = kPanelRows;
  while (most > kLeastRows && groups * (canvas * shared_by / most) < kItemsPerThread * threads) most /= 2;
  Schedule schedule = {cut(call.prefix * shared_by, kPanelRows), cut(canvas * shared_by, most), 0, 0};
  schedule.items = groups * (schedule.prefix.count + schedule.canvas.count);
  for (int64_t c = 0; c < call.classes && halo_is_seen(call); ++c) {
    schedule.most_columns = larger(schedule.most_columns, halo_length(call, c));
  }
  schedule.most_columns += call.sequence;
  return schedule;
}

/// A panel of `panels`, or the item's place in what is left.
inline AttentionItem item_at(const AttentionCall& call, const Schedule& schedule, int64_t number) {
  const int64_t panels = schedule.prefix.count + schedule.canvas.count;
  int64_t panel = number % panels, rest = number / panels;
  const bool canvas = panel >= schedule.prefix.count;
  const Panels& part = canvas ? schedule.canvas : schedule.prefix;
  if (canvas) panel -= schedule.prefix.count;
  AttentionItem item = {};
  item.kv_head = rest % call.kv_heads;
  item.batch = rest / call.kv_heads % call.batch;
  item.tile = rest / call.kv_heads / call.batch;
  item.first_token = canvas ? call.prefix : 0;
  item.tokens = canvas ? call.sequence - call.prefix : call.prefix;
  item.first_row = panel * part.size;
  item.rows = smaller(part.size, part.rows - item.first_row);
  item.sees_halo = canvas && halo_is_seen(call);
  item.columns = call.sequence + (item.sees_halo ? halo_length(call, call.class_of_tile[item.tile]) : 0);
  return item;
}

/// Products of query and key elements, about.
inline double products_of(const AttentionCall& call, const Schedule& schedule) {
  return static_cast<double>(call.tiles) * call.batch * call.heads * call.sequence * schedule.most_columns *
         call.head_dim;
}

/// Threads that pay for that many products.
inline int64_t crew_size(double products, int64_t items, int threads) {
  const double paying = 1.0 + products / kProductsPerThread;
  const int64_t most = smaller(threads, items);
  return paying < static_cast<double>(most) ? static_cast<int64_t>(paying) : most;
}

/// Bytes that `aligned` may skip.
constexpr int64_t kAlignment = 64;

inline float* aligned(void* scratch) {
  const auto address = reinterpret_cast<uintptr_t>(scratch);
  return reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace tiledattn
