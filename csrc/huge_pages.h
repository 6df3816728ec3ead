// Memory that the kernel hands out in large pages: first writing to new memory then costs a tenth.
#pragma once

#include <cstdint>

namespace tiledattn {

/// Results smaller than this mostly lie in memory that is in use already.
constexpr int64_t kHugePageBytes = int64_t{4} << 20;

/// Asks for huge pages where a result that is about to be written lies, if it is of kHugePageBytes or more: a hint,
/// harmless where the system doesn't take it, and without effect on pages that exist already. True if it was taken.
bool advise_huge_pages(void* data, int64_t bytes);

}  // namespace tiledattn
