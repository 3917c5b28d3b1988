// What the next step of a sequence touches and no step before it has, asked for a share with each
// tile of this one (ahead.h).
#pragma once
#include "../sequence.h"
#include "ahead.h"
#include "product.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// Whether `numbers` of a row and step, of all steps, are so few that L2 holds them from before.
inline bool all_near(const SequenceSizes& n, int64_t numbers) {
  return n.T * n.B * numbers * item_size(n.dtype) <= int64_t(1) << 18;
}

// Of one worker; its tiles are of `units` units a row.
class StepAhead {
 public:
  StepAhead(const Crew& crew, int64_t units) : crew_(crew), units_(units) {}

  // `numbers` for each row of the batch, rows `stride` apart.
  template <class E>
  void add(const E* rows, int64_t numbers, int64_t stride) {
    const int64_t first = crew_.first_row(), n = crew_.last_row() - first;
    tensors_[count_] = Ahead(rows + first * stride, n, numbers * sizeof(E), stride * sizeof(E));
    share_[count_++] = numbers * sizeof(E) / units_;
  }

  template <class A>
  FRNN_INLINE void operator()(const Tile<A>& tile) {
    const int64_t units = int64_t(tile.rows) * tile.vectors * Vector<A>::lanes;
    for (int i = 0; i < count_; ++i) tensors_[i].fetch(units * share_[i]);
  }

 private:
  const Crew& crew_;
  const int64_t units_;
  int count_ = 0;
  Ahead tensors_[8];
  int64_t share_[8];
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
