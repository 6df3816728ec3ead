// Threads for kernels that know nothing of where threads come from.
#pragma once

#include <cstdint>

namespace tiledattn {

/// A way to run pieces of work on several threads; the bindings bring torch's own pool.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);

  /// Calls body(begin, end, context) on disjoint ranges that cover [0, count), none shorter than `grain` but the last,
  /// and returns when all are done. The body must not throw.
  void (*run)(int64_t count, int64_t grain, Body body, void* context);

  /// The most threads that `run` uses.
  int threads;
};

/// `run` with a callable of (begin, end).
template <typename Function>
void parallel_for(const Parallel& parallel, int64_t count, int64_t grain, const Function& function) {
  const auto body = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Function*>(context))(begin, end);
  };
  parallel.run(count, grain, body, const_cast<void*>(static_cast<const void*>(&function)));
}

}  // namespace tiledattn
