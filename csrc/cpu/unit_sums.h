// Gradients of the weights of each unit's own: sums over all steps and rows, made in backward's
// loop, where the numbers are at hand (as operators afterwards they were a third of what layer
// normalisation costs). First each row's over the steps, then those of all rows in their order: the
// same bits whatever the threads, and a chain of T + B additions, not T * B.
#pragma once
#include "units.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

template <class A>
class UnitSums {
 public:
  // Of so many weights of each of H units.
  UnitSums(int64_t weights, int64_t H, int64_t B)
      : any(weights > 0), H_(H), size_(weights * H), B_(B), sums_(B * size_) {}
  explicit operator bool() const { return bool(sums_); }
  const bool any;

  // x of some units and rows to the sums of a weight.
  FRNN_INLINE void add(int64_t weight, const Pair<A>& p, const Lanes<A>& x) {
    add(weight, p.first, x.v[0]);
    if (p.second.c != p.first.c) add(weight, p.second, x.v[1]);  // an odd last one comes twice
  }

  // After the last step. Each worker writes a part of `to`, [weights, H].
  template <class D>
  FRNN_COLD void finish(const Worker& worker, D* to) const {
    worker.barrier();
    for (int64_t i = worker.first(size_); i < worker.last(size_); ++i) {
      A sum = 0;
      for (int64_t b = 0; b < B_; ++b) sum += sums_.get()[b * size_ + i];
      store(to[i], sum);
    }
  }

 private:
  FRNN_INLINE void add(int64_t weight, const Units<A>& u, const typename Vector<A>::type& x) {
    A* sums = sums_.get() + u.b * size_ + weight * H_ + u.j;
    store_vector(sums, u.n, load_vector(sums, u.n) + x);
  }

  const int64_t H_, size_, B_;
  Buffer<A> sums_;
};

}  // namespace FRNN_ISA
}  // namespace fusedrnn
