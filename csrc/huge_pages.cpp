#include "huge_pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace tiledattn {

bool advise_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kHugePageBytes) return false;
  static const intptr_t page = sysconf(_SC_PAGESIZE);
  const intptr_t begin = (reinterpret_cast<intptr_t>(data) + page - 1) / page * page;
  const intptr_t end = (reinterpret_cast<intptr_t>(data) + bytes) / page * page;
  return madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
#else
  (void)data, (void)bytes;
  return false;
#endif
}

}  // namespace tiledattn
