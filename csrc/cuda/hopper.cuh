// The instructions of sm_90a: barriers in shared memory, tensor copies, and the products of warpgroups. The emulator of
// the tests has functions of the same names.
#pragma once

#include "cuda/ptx.cuh"

#if defined(TILEDATTN_EMULATOR)
#include TILEDATTN_EMULATED_HOPPER
#else

#include <cuda.h>

namespace tiledattn::cuda::hopper {

using ptx::SharedAddress;
using TensorMap = CUtensorMap;

/// A barrier of 8 bytes: its phase ends when `arrivals` threads and all announced bytes have arrived.
__device__ __forceinline__ void make_barrier(SharedAddress barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes new barriers known to the copy engine; followed by __syncthreads.
__device__ __forceinline__ void barriers_are_made() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}

__device__ __forceinline__ void arrive(SharedAddress barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/// Arrives, and announces bytes that copies will bring.
__device__ __forceinline__ void arrive_expecting(SharedAddress barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier), "r"(bytes) : "memory");
}

/// Waits for the end of a phase: the first one is 0, then 1, 0, ...
__device__ __forceinline__ void wait(SharedAddress barrier, uint32_t phase) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(phase)
      : "memory");
}

/// What threads wrote to shared memory before may be overwritten by the copy engine after.
__device__ __forceinline__ void fence_copy_engine() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

/// Starts to copy a box of a tensor of 5 dims, whose bytes arrive at `barrier`; zeros beyond the tensor.
__device__ __forceinline__ void copy_box(SharedAddress to, const TensorMap& map, SharedAddress barrier, int32_t x0,
                                         int32_t x1, int32_t x2, int32_t x3, int32_t x4) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, %7}], "
      "[%2];\n" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(barrier), "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "memory");
}

__device__ __forceinline__ void fetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(reinterpret_cast<uint64_t>(&map)) : "memory");
}

/// `count` threads meet at a barrier of their own.
__device__ __forceinline__ void meet(int barrier, int count) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(count) : "memory");
}

/// Gives registers away, or takes them: per thread of the warpgroup.
template <int kCount>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
}

/// Before the first product, and wherever registers that products use were written.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
/// Products since the last commit become a group.
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }

/// Waits until at most `kLeft` groups are under way.
template <int kLeft>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kLeft) : "memory");
}

/// The compiler must not move uses of `x` across: products write it when they like.
template <int n>
__device__ __forceinline__ void pin(float (&x)[n][4]) {
  TILEDATTN_UNROLL_ALL
  for (int i = 0; i < n; ++i) {
    asm volatile("" : "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])::"memory");
  }
}

#define TILEDATTN_C4(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define TILEDATTN_C16(i) TILEDATTN_C4(i), TILEDATTN_C4(i + 1), TILEDATTN_C4(i + 2), TILEDATTN_C4(i + 3)
#define TILEDATTN_C32 TILEDATTN_C16(0), TILEDATTN_C16(4)
#define TILEDATTN_C64 TILEDATTN_C32, TILEDATTN_C16(8), TILEDATTN_C16(12)
#define TILEDATTN_D32                                                                                               \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31}"
#define TILEDATTN_D64                                                                                               \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "  \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

/// Starts c [64, 128] = a [64, 16] b [128, 16]^T (+ c, if `add`), all of a warpgroup's, operands in shared memory.
template <typename T>
__device__ __forceinline__ void multiply_rows(float (&c)[16][4], uint64_t a, uint64_t b, bool add);

#define TILEDATTN_MULTIPLY_ROWS(T, type)                                                                           \
  template <>                                                                                                      \
  __device__ __forceinline__ void multiply_rows<T>(float (&c)[16][4], uint64_t a, uint64_t b, bool add) {          \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\nwgmma.mma_async.sync.aligned.m64n128k16.f32." type \
                 " " TILEDATTN_D64 ", %64, %65, add, 1, 1, 0, 0;\n}\n"                                             \
                 : TILEDATTN_C64                                                                                   \
                 : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));                                                \
  }
TILEDATTN_MULTIPLY_ROWS(Brain, "bf16.bf16")
TILEDATTN_MULTIPLY_ROWS(Half, "f16.f16")

/// Starts c [64, 8 n] += a [64, 16] b [16, 8 n], a in registers, b in shared memory.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b);
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b);

#define TILEDATTN_MULTIPLY_ADD(T, type)                                                                    \
  template <>                                                                                              \
  __device__ __forceinline__ void multiply_add<T>(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {  \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type " " TILEDATTN_D32                      \
                 ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"                                              \
                 : TILEDATTN_C32                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                    \
  }                                                                                                        \
  template <>                                                                                              \
  __device__ __forceinline__ void multiply_add<T>(float (&c)[16][4], const uint32_t (&a)[4], uint64_t b) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." type " " TILEDATTN_D64                     \
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"                                              \
                 : TILEDATTN_C64                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                    \
  }
TILEDATTN_MULTIPLY_ADD(Brain, "bf16.bf16")
TILEDATTN_MULTIPLY_ADD(Half, "f16.f16")

#undef TILEDATTN_MULTIPLY_ADD
#undef TILEDATTN_MULTIPLY_ROWS
#undef TILEDATTN_D64
#undef TILEDATTN_D32
#undef TILEDATTN_C64
#undef TILEDATTN_C32
#undef TILEDATTN_C16
#undef TILEDATTN_C4

}  // namespace tiledattn::cuda::hopper

#endif
