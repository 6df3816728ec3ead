// CUDA, or what stands in for it where kernels are run on a CPU for tests.
#pragma once

#if defined(TILEDATTN_EMULATOR)
#include TILEDATTN_EMULATOR
#define TILEDATTN_SHARED_MEMORY(name) unsigned char* name = emulator::block()->shared
#else
#include <cuda_runtime.h>
#define TILEDATTN_SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

#define TILEDATTN_UNROLL_ALL _Pragma("unroll")
