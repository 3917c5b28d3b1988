// Memory for large gradients. malloc would map it anew in every step, and clearing new pages costs
// far more than writing to old ones (docs/notebook-cpu.md, Output layers): so the block that was
// freed last is kept for the next that fits. The system may take its pages back meanwhile.
#pragma once
#include <sys/mman.h>

#include <mutex>
#include <utility>

#include "common.h"

namespace fusedrnn {

// From here on glibc's malloc maps every block by itself; below, it reuses memory too.
constexpr size_t kLargeBytes = size_t(32) << 20;

class LargeBlock {
 public:
  void* data = nullptr;
  size_t bytes = 0;

  // Holds anything; data is null where there is no memory.
  static LargeBlock get(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_.bytes >= bytes && kept_.bytes / 2 <= bytes) return std::exchange(kept_, {});
    }
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return {};
    madvise(data, bytes, MADV_HUGEPAGE);  // no more than advice, as is MADV_FREE
    return {data, bytes};
  }

  static void put(LargeBlock block) {
    madvise(block.data, block.bytes, MADV_FREE);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::swap(block, kept_);
    }
    if (block.data) munmap(block.data, block.bytes);
  }

 private:
  static inline std::mutex mutex_;
  static LargeBlock kept_;
};
inline LargeBlock LargeBlock::kept_;

// A CPU tensor of like's dtype that holds anything.
inline Tensor allocate_large(const Tensor& like, int64_t rows, int64_t columns) {
  const size_t bytes = size_t(rows) * columns * like.element_size();
  const LargeBlock block = bytes < kLargeBytes ? LargeBlock{} : LargeBlock::get(bytes);
  if (!block.data) return allocate(like, {rows, columns});
  const int64_t size[] = {rows, columns}, stride[] = {columns, 1};
  return torch::stable::from_blob(block.data, {size, 2}, {stride, 2}, like.device(),
                                  like.scalar_type(), [block](void*) { LargeBlock::put(block); });
}

}  // namespace fusedrnn
