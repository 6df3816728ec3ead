#include "cpu/instruction_sets.h"

#include <atomic>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && !defined(TILEDATTN_WITHOUT_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tiledattn {
namespace {

constexpr InstructionSet kAll[] = {InstructionSet::amx, InstructionSet::avx512_bf16, InstructionSet::avx512,
                                   InstructionSet::avx2, InstructionSet::portable};

#if defined(__x86_64__)
/// Whether there are matrix registers for bfloat16, and the system lets this process use them: it saves their 8 KB only
/// for processes that have asked.
bool amx_runs_here() {
#if defined(__linux__) && !defined(TILEDATTN_WITHOUT_AMX)
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kBfloat16 = 1u << 22, kMatrices = 1u << 24;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBfloat16) == 0 || (d & kMatrices) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kMatrixData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kMatrixData) == 0;
#else
  return false;
#endif
}
#endif

bool runs_here(InstructionSet set) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (set) {
    case InstructionSet::avx2:
      return avx2;
    case InstructionSet::avx512:
      return avx512;
    case InstructionSet::avx512_bf16:
      return avx512 && __builtin_cpu_supports("avx512bf16");
    case InstructionSet::amx:
      return avx512 && __builtin_cpu_supports("avx512bf16") && amx_runs_here();
    default:
      return true;
  }
#else
  return set == InstructionSet::portable;
#endif
}

/// Intel's processors take longer for products of bfloat16 pairs in vectors than for as many of floats.
bool pays_here(InstructionSet set) {
#if defined(__x86_64__)
  return set != InstructionSet::avx512_bf16 || !__builtin_cpu_is("intel");
#else
  (void)set;
  return true;
#endif
}

InstructionSet best() {
  for (InstructionSet set : kAll) {
    if (runs_here(set) && pays_here(set)) return set;
  }
  return InstructionSet::portable;
}

std::atomic<InstructionSet>& chosen() {
  static std::atomic<InstructionSet> set{best()};
  return set;
}

}  // namespace

InstructionSet instruction_set() { return chosen().load(std::memory_order_relaxed); }

bool use_instruction_set(const char* name) {
  if (std::strcmp(name, "auto") == 0) {
    chosen() = best();
    return true;
  }
  for (InstructionSet set : kAll) {
    if (std::strcmp(name, name_of(set)) == 0 && runs_here(set)) {
      chosen() = set;
      return true;
    }
  }
  return false;
}

const char* name_of(InstructionSet set) {
  switch (set) {
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx512_bf16:
      return "avx512_bf16";
    case InstructionSet::amx:
      return "amx";
    default:
      return "portable";
  }
}

}  // namespace tiledattn
