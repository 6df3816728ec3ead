// Gradients of cross-tile attention on the CPU: checks, the cut into items, and their distribution over threads.

#include "cpu/attention_backward.h"

#include <atomic>

#include "attention_schedule.h"
#include "cpu/attention_backward_item.h"

namespace tiledattn {
namespace {

/// Fewer keys than this don't pay for packing queries.
constexpr int64_t kLeastKeys = 128;
/// The gradients' products per product of the forward: three over the plan and four over the reversed plan, for two.
constexpr double kProductsPerForward = 3.5;
/// Tokens whose deltas a thread makes at once.
constexpr int64_t kDeltaTokens = 256;

struct BackwardSchedule {
  Schedule queries;
  Panels keys;
  int64_t key_items;

  int64_t items() const { return queries.items + key_items; }
};

BackwardSchedule make_backward_schedule(const AttentionCall& call, int threads) {
  const int64_t groups = call.pool_tiles * call.batch * call.kv_heads;
  int64_t most = kPanelKeys;
  while (most > kLeastKeys && groups * (call.sequence / most) < kItemsPerThread * threads) most /= 2;
  BackwardSchedule schedule = {make_schedule(call, threads), cut(call.sequence, most), 0};
  schedule.key_items = groups * schedule.keys.count;
  return schedule;
}

struct BackwardMemory {
  AttentionBackwardMemory queries, keys;

  int64_t total() const { return larger(queries.total, keys.total); }
};

BackwardMemory memory_of(const AttentionCall& call, const BackwardSchedule& schedule, int64_t pack) {
  const Panels &prefix = schedule.queries.prefix, &canvas = schedule.queries.canvas;
  const int64_t rows = larger(smaller(prefix.size, prefix.rows), smaller(canvas.size, canvas.rows));
  return {query_pass_memory(call.head_dim, pack, schedule.queries.most_columns, rows),
          key_pass_memory(call.head_dim, pack, call.sequence * (call.heads / call.kv_heads), schedule.keys.size)};
}

KeyItem key_item_at(const AttentionCall& call, const Panels& panels, int64_t number) {
  const int64_t rest = number / panels.count;
  KeyItem item = {};
  item.kv_head = rest % call.kv_heads;
  item.batch = rest / call.kv_heads % call.batch;
  item.lender = rest / call.kv_heads / call.batch;
  item.first_token = number % panels.count * panels.size;
  item.tokens = smaller(panels.size, panels.rows - item.first_token);
  return item;
}

struct BackwardCrew {
  const AttentionBackwardCall& call;
  const BackwardSchedule& schedule;
  const BackwardMemory places;
  InstructionSet set;
  const float* deltas;
  float* memory;
  std::atomic<int64_t> next{0};

  template <class Item>
  void run_item(const Item& item, const AttentionBackwardMemory& at, float* own) const {
    switch (set) {
#define TILEDATTN_RUN_ITEM(isa) \
  case InstructionSet::isa:     \
    return isa::attention_backward_item(call, deltas, item, at, own);
      TILEDATTN_FOR_EACH_ISA(TILEDATTN_RUN_ITEM)
#undef TILEDATTN_RUN_ITEM
      default:
        return portable::attention_backward_item(call, deltas, item, at, own);
    }
  }

  /// One thread's work: items until there are none. Which thread takes which doesn't change their results.
  void work(int64_t member) {
    float* own = memory + member * places.total();
    for (int64_t number = next++; number < schedule.items(); number = next++) {
      if (number < schedule.queries.items) {
        const AttentionItem item = item_at(call.forward, schedule.queries, number);
        if (item.rows > 0) run_item(item, places.queries, own);
      } else {
        const KeyItem item = key_item_at(call.forward, schedule.keys, number - schedule.queries.items);
        if (item.tokens > 0) run_item(item, places.keys, own);
      }
    }
  }
};

int64_t members_of(const AttentionCall& call, const BackwardSchedule& schedule, int threads) {
  return crew_size(kProductsPerForward * products_of(call, schedule.queries), schedule.items(), threads);
}

int64_t delta_floats(const AttentionCall& call) {
  return round_up(call.tiles * call.batch * call.heads * call.sequence, 16);
}

void make_deltas(const AttentionBackwardCall& call, float* deltas, int64_t begin, int64_t end) {
#define TILEDATTN_CALL attention_deltas(call, begin, end, deltas)
  TILEDATTN_DISPATCH
#undef TILEDATTN_CALL
}

const char* range_error(const ReversedPlan& plan, int64_t canvas) {
  for (int64_t c = 0; c < plan.classes; ++c) {
    if (plan.starts[c] < 0 || plan.starts[c] > plan.starts[c + 1]) return "cell_starts must ascend";
  }
  for (int64_t i = 0; i < plan.starts[plan.classes]; ++i) {
    const Cell& cell = plan.cells[i];
    if (cell.tokens < 0 || cell.first_token < 0 || cell.first_token > plan.all_tokens - cell.tokens) {
      return "a cell's tokens are out of range";
    }
    if (cell.borrowers < 0 || cell.first_borrower < 0 || cell.first_borrower > plan.all_borrowers - cell.borrowers) {
      return "a cell's borrowers are out of range";
    }
  }
  for (int64_t i = 0; i < plan.all_tokens; ++i) {
    if (plan.tokens[i] < 0 || plan.tokens[i] >= canvas) return "a cell's token leaves its tile";
  }
  return nullptr;
}

}  // namespace

const char* attention_backward_error(const AttentionBackwardCall& call) {
  const char* error = attention_error(call.forward);
  if (error) return error;
  const AttentionCall& sizes = call.forward;
  const ReversedPlan& plan = call.reversed;
  error = range_error(plan, sizes.sequence - sizes.prefix);
  if (error) return error;
  for (int64_t u = 0; u < sizes.pool_tiles; ++u) {
    const int64_t of_class = plan.class_of[u];
    if (of_class < 0 || of_class >= plan.classes) return "a lender's class is out of range";
    for (int64_t c = plan.starts[of_class]; c < plan.starts[of_class + 1]; ++c) {
      const int32_t* borrowers = plan.borrowers + plan.cells[c].first_borrower;
      for (int64_t i = 0; i < plan.cells[c].borrowers; ++i) {
        if (borrowers[i] == 0) return "a lender borrows from itself";
        if (u + borrowers[i] < 0 || u + borrowers[i] >= sizes.tiles) return "a borrower is no tile of q";
      }
    }
  }
  return nullptr;
}

int64_t attention_backward_scratch_bytes(const AttentionBackwardCall& call, int threads) {
  const AttentionCall& sizes = call.forward;
  const BackwardSchedule schedule = make_backward_schedule(sizes, threads);
  // whichever instruction set is in use when the call runs
  const int64_t own = larger(memory_of(sizes, schedule, 1).total(), memory_of(sizes, schedule, 2).total());
  const int64_t floats = delta_floats(sizes) + members_of(sizes, schedule, threads) * own;
  return floats * int64_t{sizeof(float)} + kAlignment;
}

int64_t attention_backward_scratch_limit(int64_t head_dim, int threads) {
  int64_t most = 0;
  for (int64_t pack = 1; pack <= 2; ++pack) {
    most = larger(most, query_pass_memory(head_dim, pack, INT32_MAX, kPanelRows).total);
    most = larger(most, key_pass_memory(head_dim, pack, INT32_MAX, kPanelKeys).total);
  }
  return threads * most * int64_t{sizeof(float)} + kAlignment;
}

void attention_backward(const AttentionBackwardCall& call, void* scratch, const Parallel& parallel) {
  const AttentionCall& sizes = call.forward;
  const BackwardSchedule schedule = make_backward_schedule(sizes, parallel.threads);
  if (schedule.items() == 0) return;
  const InstructionSet set = instruction_set();
  float* deltas = aligned(scratch);
  const int64_t tokens = sizes.tiles * sizes.batch * sizes.sequence;
  parallel_for(parallel, tokens, kDeltaTokens,
               [&](int64_t begin, int64_t end) { make_deltas(call, deltas, begin, end); });
  const BackwardMemory places = memory_of(sizes, schedule, gradient_pack(sizes.type, set));
  BackwardCrew crew{call, schedule, places, set, deltas, deltas + delta_floats(sizes)};
  const int64_t members = members_of(sizes, schedule, parallel.threads);
  if (members == 1) return crew.work(0);
  parallel_for(parallel, members, 1, [&crew](int64_t begin, int64_t end) {
    for (int64_t member = begin; member < end; ++member) crew.work(member);
  });
}

}  // namespace tiledattn
