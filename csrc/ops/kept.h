// Memory that is kept for the next call: gradients of large tables, and what a sequence leaves for
// backward. malloc gives such blocks back to the system when a step ends, and touching new pages in
// the next costs more than much of the arithmetic (docs/notebook-cpu.md). Of blocks of
// 2 MB and more the system may take the pages back meanwhile.
#pragma once
#include <sys/mman.h>

#include <mutex>

#include "common.h"

namespace fusedrnn {

class KeptBlock {
 public:
  static constexpr size_t kLeast = size_t(1) << 18, kHuge = size_t(1) << 21;
  void* data = nullptr;
  size_t bytes = 0;

  // Of at least so many bytes, which hold anything; data is null where there is no memory.
  static KeptBlock get(size_t bytes) {
    if (const KeptBlock kept = take(bytes); kept.data) return kept;
    KeptBlock best;
    // Huge pages must begin at multiples of their size, and mmap promises only those of a page.
    const size_t unit = bytes < kHuge ? kLeast / 4 : kHuge;
    best.bytes = (bytes + unit - 1) / unit * unit;
    const size_t spare = bytes < kHuge ? 0 : kHuge;
    void* mapped = mmap(nullptr, best.bytes + spare, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return {};
    best.data = mapped;
    if (spare) {
      char* from = static_cast<char*>(mapped);
      char* begin = from + (kHuge - reinterpret_cast<uintptr_t>(mapped) % kHuge) % kHuge;
      if (begin > from) munmap(from, begin - from);
      if (begin < from + spare) munmap(begin + best.bytes, from + spare - begin);
      best.data = begin;
      madvise(best.data, best.bytes, MADV_HUGEPAGE);  // no more than advice, as is MADV_FREE
    }
    return best;
  }

  // Those that were given back last are kept, and no more than a few.
  static void put(KeptBlock block) {
    if (block.bytes >= kHuge) madvise(block.data, block.bytes, MADV_FREE);
    KeptBlock oldest;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (count_ == kMost) oldest = remove(0);
      kept_[count_++] = block;
    }
    if (oldest.data) munmap(oldest.data, oldest.bytes);
  }

  // Gives all back to the system: how many bytes.
  static int64_t release() {
    const std::lock_guard<std::mutex> lock(mutex_);
    int64_t bytes = 0;
    for (; count_ > 0; --count_) {
      munmap(kept_[count_ - 1].data, kept_[count_ - 1].bytes);
      bytes += int64_t(kept_[count_ - 1].bytes);
    }
    return bytes;
  }

 private:
  // The smallest kept one that holds so many bytes and is at most twice as large.
  static KeptBlock take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    int found = -1;
    for (int i = 0; i < count_; ++i)
      if (kept_[i].bytes >= bytes && kept_[i].bytes / 2 <= bytes &&
          (found < 0 || kept_[i].bytes < kept_[found].bytes))
        found = i;
    return found < 0 ? KeptBlock{} : remove(found);
  }
  static KeptBlock remove(int i) {
    const KeptBlock block = kept_[i];
    for (--count_; i < count_; ++i) kept_[i] = kept_[i + 1];
    return block;
  }

  // Plain data: tensors may be freed when the process ends, after whatever has a destructor.
  static constexpr int kMost = 8;
  static inline std::mutex mutex_;
  static KeptBlock kept_[kMost];  // in the order in which they came back
  static inline int count_ = 0;
};
inline KeptBlock KeptBlock::kept_[KeptBlock::kMost];

// A contiguous tensor on like's device that holds anything; on the CPU, from what was kept.
inline Tensor allocate_kept(const Tensor& like, const std::vector<int64_t>& size,
                            std::optional<ScalarType> dtype = std::nullopt) {
  const ScalarType type = dtype.value_or(like.scalar_type());
  size_t bytes = type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  for (int64_t n : size) bytes *= size_t(n);
  if (!like.is_cpu() || bytes < KeptBlock::kLeast) return allocate(like, size, dtype);
  const KeptBlock block = KeptBlock::get(bytes);
  if (!block.data) return allocate(like, size, dtype);
  std::vector<int64_t> stride(size.size(), 1);
  for (size_t i = size.size(); i-- > 1;) stride[i - 1] = stride[i] * size[i];
  return torch::stable::from_blob(block.data, {size.data(), size.size()},
                                  {stride.data(), stride.size()}, like.device(), type,
                                  [block](void*) { KeptBlock::put(block); });
}

}  // namespace fusedrnn
