// The online log-sum-exp over the threads of a CTA.
#pragma once
#include <cmath>

#include "reduce.cuh"

namespace fusedrnn {
namespace cuda {

constexpr int kReduceThreads = 128;

// The largest of some numbers and the sum of exp(z - top), in one pass.
template <class W>
struct OnlineSum {
  W top = -static_cast<W>(INFINITY), sum = 0;

  __device__ void add(W z) {
    using std::exp;
    if (z > top) {
      sum = sum * exp(top - z) + 1;
      top = z;
    } else if (z != -static_cast<W>(INFINITY)) {  // words masked by their bias add nothing
      sum += exp(z - top);
    }
  }

  // All threads of the CTA: those of all of them.
  __device__ void combine(W (&buffer)[kReduceThreads]) {
    using std::exp;
    const W most = reduced(buffer, top, [](W a, W b) { return a > b ? a : b; });
    const W mine = sum != 0 ? sum * exp(top - most) : W(0);
    sum = reduced(buffer, mine, [](W a, W b) { return a + b; });
    top = most;
  }
};

}  // namespace cuda
}  // namespace fusedrnn
