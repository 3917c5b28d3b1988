// Variational dropout's factors on the CPU: by which h is multiplied where it meets W_hh.
#pragma once
#include "../random.h"
#include "types.h"

namespace fusedrnn {
inline namespace FRNN_ISA {

// Of all rows, [B, P], the same in all steps.
template <class D>
void sequence_factors(int64_t seed, int64_t B, int64_t P, double p, D* to) {
  for (int64_t b = 0; b < B; ++b) {
    const uint64_t key = sequence_key(seed, b);
    for (int64_t j = 0; j < P; ++j)
      store(to[b * P + j], factor_of<State<D>>(key, Stream::sequence, j, p));
  }
}

}  // namespace FRNN_ISA
}  // namespace fusedrnn
