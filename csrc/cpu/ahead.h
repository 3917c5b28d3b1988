// Asks for memory before it is wanted: a share with each tile of a product, in the order of
// addresses and into L2. A tile's own lines, asked for as it begins, come late and hinder its
// weights on their way into L1: LSTM B=20 H=200 at T=350 took 64 us a step forward, and 41 so.
#pragma once
#include <cstdint>

#include "types.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// Rows of some bytes each, `stride` bytes apart.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const void* from, int64_t rows, int64_t bytes, int64_t stride)
      : row_(static_cast<const char*>(from)),
        rows_(bytes > 0 ? rows : 0),
        bytes_(bytes),
        stride_(stride) {
    if (bytes == stride) bytes_ *= rows_, rows_ = bytes_ > 0;
  }

  // The next `bytes` of them, or what is left.
  FRNN_INLINE void fetch(int64_t bytes) {
    for (; bytes > 0 && rows_ > 0; bytes -= 64) {
      __builtin_prefetch(row_ + at_, 0, 2);
      if ((at_ += 64) >= bytes_) at_ = 0, row_ += stride_, --rows_;
    }
  }

 private:
  const char* row_ = nullptr;
  int64_t rows_ = 0, bytes_ = 0, stride_ = 0, at_ = 0;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
