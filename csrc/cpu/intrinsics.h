// The compiler's header of vector instructions, where there is one; nothing else includes it.
#pragma once

#if defined(__x86_64__)
// it starts from values that the compiler then takes for uninitialised ones (GCC bug 105593)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif
