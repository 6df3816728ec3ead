// Cross-tile attention on the CPU: checks, the cut into items, and their distribution over threads.

#include "cpu/attention.h"

#include <atomic>

#include "attention_schedule.h"

namespace tiledattn {
namespace {

AttentionMemory memory_of(const AttentionCall& call, const Schedule& schedule, InstructionSet set) {
  const int64_t rows =
      larger(smaller(schedule.prefix.size, schedule.prefix.rows), smaller(schedule.canvas.size, schedule.canvas.rows));
  return attention_memory(call.head_dim, attention_pack(call.type, set), schedule.most_columns, rows);
}

struct Crew {
  const AttentionCall& call;
  const Schedule& schedule;
  const AttentionMemory places;
  InstructionSet set;
  float* memory;
  int64_t members;
  std::atomic<int64_t> next{0};

  void run_item(const AttentionItem& item, const AttentionItem* following, float* own) const {
    switch (set) {
#define TILEDATTN_RUN_ITEM(isa) \
  case InstructionSet::isa:     \
    return isa::attention_item(call, item, following, places, own);
      TILEDATTN_FOR_EACH_ISA(TILEDATTN_RUN_ITEM)
#undef TILEDATTN_RUN_ITEM
      default:
        return portable::attention_item(call, item, following, places, own);
    }
  }

  /// One thread's work: items until there are none. Which thread takes which doesn't change their results.
  void work(int64_t member) {
    float* own = memory + member * places.total;
    for (int64_t number = next++; number < schedule.items; number = next++) {
      const AttentionItem item = item_at(call, schedule, number);
      const int64_t after = number + members;  // if threads take turns
      const AttentionItem following = item_at(call, schedule, smaller(after, schedule.items - 1));
      if (item.rows > 0) run_item(item, after < schedule.items ? &following : nullptr, own);
    }
  }
};

int64_t members_of(const AttentionCall& call, const Schedule& schedule, int threads) {
  return crew_size(products_of(call, schedule), schedule.items, threads);
}

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
  return members_of(call, schedule, threads) * larger(plain, paired) * int64_t{sizeof(float)} + kAlignment;
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
  const int64_t members = members_of(call, schedule, parallel.threads);
  Crew crew{call, schedule, memory_of(call, schedule, set), set, aligned(scratch), members};
  if (members == 1) return crew.work(0);
  parallel_for(parallel, members, 1, [&crew](int64_t begin, int64_t end) {
    for (int64_t member = begin; member < end; ++member) crew.work(member);
  });
}

}  // namespace tiledattn
