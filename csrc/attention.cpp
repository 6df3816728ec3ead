// Cross-tile attention on the CPU: checks, the cut into items, and their distribution over threads.

#include "cpu/attention.h"

#include <atomic>
#include <cstdint>

#include "cpu/attention_item.h"

namespace tiledattn {
namespace {

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

bool halo_is_seen(const AttentionCall& call) { return call.halo_weight > 0.0f; }

int64_t halo_length(const AttentionCall& call, int64_t of_class) {
  int64_t length = 0;
  for (int64_t r = call.run_starts[of_class]; r < call.run_starts[of_class + 1]; ++r) length += call.runs[r].length;
  return length;
}

Panels cut(int64_t rows, int64_t most) {
  if (rows == 0) return {0, 0, 1};
  const int64_t count = (rows + most - 1) / most;
  return {rows, count, round_up((rows + count - 1) / count, kBlockRows)};
}

Schedule make_schedule(const AttentionCall& call, int threads) {
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

AttentionMemory memory_of(const AttentionCall& call, const Schedule& schedule, InstructionSet set) {
  const int64_t rows =
      larger(smaller(schedule.prefix.size, schedule.prefix.rows), smaller(schedule.canvas.size, schedule.canvas.rows));
  return attention_memory(call.head_dim, attention_pack(call.type, set), schedule.most_columns, rows);
}

/// A panel of `panels`, or the item's place in what is left.
AttentionItem item_at(const AttentionCall& call, const Schedule& schedule, int64_t number) {
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

struct Crew {
  const AttentionCall& call;
  const Schedule& schedule;
  const AttentionMemory places;
  InstructionSet set;
  float* memory;
  std::atomic<int64_t> next{0};

  void run_item(const AttentionItem& item, float* own) const {
    switch (set) {
#define TILEDATTN_RUN_ITEM(isa) \
  case InstructionSet::isa:     \
    return isa::attention_item(call, item, places, own);
      TILEDATTN_FOR_EACH_ISA(TILEDATTN_RUN_ITEM)
#undef TILEDATTN_RUN_ITEM
      default:
        return portable::attention_item(call, item, places, own);
    }
  }

  /// One thread's work: items until there are none. Which thread takes which doesn't change their results.
  void work(int64_t member) {
    float* own = memory + member * places.total;
    for (int64_t number = next++; number < schedule.items; number = next++) {
      const AttentionItem item = item_at(call, schedule, number);
      if (item.rows > 0) run_item(item, own);
    }
  }
};

int64_t crew_size(const AttentionCall& call, const Schedule& schedule, int threads) {
  const double products =
      static_cast<double>(call.tiles) * call.batch * call.heads * call.sequence * schedule.most_columns * call.head_dim;
  const double paying = 1.0 + products / kProductsPerThread;
  const int64_t most = smaller(threads, schedule.items);
  return paying < static_cast<double>(most) ? static_cast<int64_t>(paying) : most;
}

constexpr int64_t kAlignment = 64;

}  // namespace

const char* attention_error(const AttentionCall& call) {
  if (call.tiles < 0 || call.batch < 0 || call.heads < 1 || call.head_dim < 1) return "sizes must be positive";
  if (call.kv_heads < 1 || call.heads % call.kv_heads != 0) return "Hkv must divide H";
  if (call.prefix < 0 || call.prefix >= call.sequence) return "S must be larger than the number of prefix tokens";
  if (call.pool_tiles < call.tiles) return "the pool must have at least as many tiles as q";
  const int64_t canvas = call.sequence - call.prefix;
  for (int64_t t = 0; t < call.tiles; ++t) {
    if (call.class_of_tile[t] < 0 || call.class_of_tile[t] >= call.classes) return "a tile's class is out of range";
  }
  for (int64_t c = 0; c < call.classes; ++c) {
    if (call.run_starts[c] < 0 || call.run_starts[c] > call.run_starts[c + 1]) return "run_starts must ascend";
  }
  for (int64_t t = 0; t < call.tiles; ++t) {
    const int64_t c = call.class_of_tile[t];
    for (int64_t r = call.run_starts[c]; r < call.run_starts[c + 1]; ++r) {
      const int64_t first = t * canvas + call.runs[r].start, length = call.runs[r].length;
      if (first < 0 || length < 1 || first + length > call.pool_tiles * canvas) return "a run leaves the pool";
      if (first % canvas + length > canvas) return "a run crosses from one tile to the next";
    }
  }
  return nullptr;
}

int64_t attention_scratch_bytes(const AttentionCall& call, int threads) {
  const Schedule schedule = make_schedule(call, threads);
  const int64_t plain = memory_of(call, schedule, InstructionSet::portable).total;
  // whichever instruction set is in use when the call runs
  const int64_t paired = memory_of(call, schedule, InstructionSet::avx512_bf16).total;
  return crew_size(call, schedule, threads) * larger(plain, paired) * int64_t{sizeof(float)} + kAlignment;
}

int64_t attention_scratch_limit(int64_t head_dim, int threads) {
  const int64_t plain = attention_memory(head_dim, 1, INT32_MAX, kPanelRows).total;
  const int64_t paired = attention_memory(head_dim, 2, INT32_MAX, kPanelRows).total;
  return threads * larger(plain, paired) * int64_t{sizeof(float)} + kAlignment;
}

void attention(const AttentionCall& call, void* scratch, const Parallel& parallel) {
  const Schedule schedule = make_schedule(call, parallel.threads);
  if (schedule.items == 0) return;
  const InstructionSet set = instruction_set();
  const auto address = reinterpret_cast<uintptr_t>(scratch);
  auto* memory = reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
  Crew crew{call, schedule, memory_of(call, schedule, set), set, memory};
  const int64_t members = crew_size(call, schedule, parallel.threads);
  if (members == 1) return crew.work(0);
  parallel_for(parallel, members, 1, [&crew](int64_t begin, int64_t end) {
    for (int64_t member = begin; member < end; ++member) crew.work(member);
  });
}

}  // namespace tiledattn
