// The instruction sets that kernels are compiled for, and the one in use.
//
// Every source in csrc/cpu is compiled once per instruction set, with TILEDATTN_ISA naming the namespace that its
// kernels live in and TILEDATTN_ISA_<NAME> (PORTABLE, AVX2, AVX512, AVX512_BF16, AMX) defined; AMX defines AVX512_BF16
// as well. Such a source must not instantiate inline functions that other sources share (std containers and algorithms
// with external linkage): the linker keeps one copy of them, which might be the one that this processor can't run.
//
// TILEDATTN_WITHOUT_AMX: the assembler doesn't know AMX.
#pragma once

#if defined(__x86_64__) && defined(TILEDATTN_WITHOUT_AMX)
#define TILEDATTN_FOR_EACH_ISA(X) X(portable) X(avx2) X(avx512) X(avx512_bf16)
#elif defined(__x86_64__)
#define TILEDATTN_FOR_EACH_ISA(X) X(portable) X(avx2) X(avx512) X(avx512_bf16) X(amx)
#else
#define TILEDATTN_FOR_EACH_ISA(X) X(portable)
#endif

namespace tiledattn {

enum class InstructionSet { portable, avx2, avx512, avx512_bf16, amx };

/// The best one that this processor runs, unless `use_instruction_set` has chosen another.
InstructionSet instruction_set();

/// Chooses by name ("auto": the best); false if the name is unknown or this processor can't run it.
bool use_instruction_set(const char* name);

const char* name_of(InstructionSet set);

}  // namespace tiledattn

#define TILEDATTN_CASE_OF_ISA(isa)     \
  case tiledattn::InstructionSet::isa: \
    return tiledattn::isa::TILEDATTN_CALL;

/// A function's body: `return tiledattn::<instruction set in use>::TILEDATTN_CALL`, where TILEDATTN_CALL is a macro
/// with the call, defined just before.
#define TILEDATTN_DISPATCH                        \
  switch (tiledattn::instruction_set()) {         \
    TILEDATTN_FOR_EACH_ISA(TILEDATTN_CASE_OF_ISA) \
    default:                                      \
      return tiledattn::portable::TILEDATTN_CALL; \
  }
