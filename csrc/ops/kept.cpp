// Kept memory for Python: taking it, and giving it back to the system.
#include "kept.h"

namespace fusedrnn {
namespace {

int64_t empty_cache() { return KeptBlock::release(); }

Tensor empty_kept(Tensor like, int64_t rows, int64_t columns) {
  STD_TORCH_CHECK(rows >= 0 && columns >= 0, "fusedrnn: sizes must not be negative, got ", rows,
                  " and ", columns);
  return allocate_kept(like, {rows, columns});
}

}  // namespace
}  // namespace fusedrnn

STABLE_TORCH_LIBRARY_IMPL(fusedrnn, CompositeExplicitAutograd, m) {
  m.impl("empty_cache", TORCH_BOX(&fusedrnn::empty_cache));
  m.impl("empty_kept", TORCH_BOX(&fusedrnn::empty_kept));
}
